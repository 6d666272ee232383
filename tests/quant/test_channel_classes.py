"""Which channels may be put in another order: whatever order that is, the network computes the same."""

from __future__ import annotations

import numpy as np
import pytest
from attention_networks import pictures as larger_pictures
from attention_networks import planned
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from quant_networks import SIZE, Builder, inverted_residual, pictures, residual_network, run

from edgeattn.attention import attentions
from edgeattn.onnx_graph import Graph
from edgeattn.quant.channel_classes import find_channel_classes
from edgeattn.quant.channel_order import apply_channel_orders

KINDS = tuple(name for name in attentions if attentions.get(name).contract == "map")


def _shuffled(model: ModelProto, seed: int = 0) -> tuple[ModelProto, int]:
    """Return the model with every class in a random order, and how many classes it has."""
    graph, random = Graph(model), np.random.default_rng(seed)
    classes = find_channel_classes(graph)
    apply_channel_orders(graph, {item.name: random.permutation(item.channels).tolist() for item in classes})
    return graph.to_model(), len(classes)


def _assert_same(model: ModelProto, other: ModelProto, images: list[NDArray[np.float32]]) -> None:
    for image in images:
        wanted, got = run(model, image)[0], run(other, image)[0]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * max(1.0, float(np.abs(wanted).max())))


@given(st.integers(0, 1000), st.sampled_from([inverted_residual, residual_network]))
def test_any_order_of_inner_channels_computes_the_same(seed: int, make: object) -> None:
    model = make(seed)  # type: ignore[operator]
    shuffled, count = _shuffled(model, seed)
    assert count >= 3
    assert shuffled != model
    _assert_same(model, shuffled, pictures(2, seed))


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_around_a_gate_computes_the_same(kind: str) -> None:
    model, _ = planned(kind)
    shuffled, count = _shuffled(model)
    assert count >= 1, "at least what the projection writes"
    _assert_same(model, shuffled, larger_pictures(2))


@pytest.mark.parametrize("kind", ["se", "coord", "eca"])
def test_the_channels_of_a_gate_move_with_those_that_it_multiplies(kind: str) -> None:
    """Else the widest tensors of a network with attention would keep their order."""
    model, _ = planned(kind)
    wide = [item for item in find_channel_classes(Graph(model)) if item.channels == 32]
    assert any(any("features.5.weight" in name for name, _ in item.readers) for item in wide)


@pytest.mark.parametrize("kind", ["cbam", "triplet"])
def test_channels_that_a_gate_turns_or_averages_keep_their_order(kind: str) -> None:
    model, _ = planned(kind)
    for item in find_channel_classes(Graph(model)):
        assert not any("features.5.weight" in name for name, _ in item.readers)


def test_inputs_and_outputs_keep_their_order() -> None:
    model = residual_network(0)
    names = {name for item in find_channel_classes(Graph(model)) for name, *_ in item.writers}
    assert not {"classifier.weight", "classifier.bias"} & names
    read = {name for item in find_channel_classes(Graph(model)) for name, _ in item.readers}
    assert "stem.weight" not in read


@pytest.mark.parametrize(
    "operation",
    ["shared weight", "concat", "transpose", "mean over channels", "constant through another", "unknown"],
)
def test_operations_that_look_at_the_order_keep_it(operation: str) -> None:
    b = Builder()
    x = b.relu6(b.conv("input", "first", 3, SIZE), "first_act")
    if operation == "shared weight":
        y = b.conv(x, "second", SIZE, SIZE)
        y = b.node("Conv", [y, "second.weight", "second.bias"], "again", kernel_shape=[1, 1])
    elif operation == "concat":
        y = b.node("Concat", [x, x], "both", axis=1)
        y = b.conv(y, "second", 2 * SIZE, SIZE)
    elif operation == "transpose":
        y = b.conv(b.node("Transpose", [x], "turned", perm=[0, 2, 1, 3]), "second", SIZE, SIZE)
    elif operation == "mean over channels":
        y = b.node("Mul", [x, b.node("ReduceMean", [x], "mean", axes=[1])], "gated")
        y = b.conv(y, "second", SIZE, SIZE)
    elif operation == "constant through another":
        b.constant("factor", b.random.normal(size=(1, SIZE, 1, 1)))
        y = b.node("Mul", [x, b.node("Sigmoid", ["factor"], "gate")], "gated")
        y = b.conv(y, "second", SIZE, SIZE)
    else:
        y = b.conv(b.node("LRN", [x], "normalized", size=3), "second", SIZE, SIZE)
    model = b.model(b.conv(y, "out", SIZE, 4), (1, 4, SIZE, SIZE))
    classes = find_channel_classes(Graph(model))
    assert not any(("first.bias", 0, 0) in item.writers for item in classes)
    shuffled, _ = _shuffled(model)
    _assert_same(model, shuffled, pictures(1))


def test_constants_by_channel_move_and_scalars_stay() -> None:
    b = Builder()
    x = b.conv("input", "first", 3, 8)
    b.constant("factor", b.random.normal(size=(8, 1, 1)))
    b.constant("addend", 0.5)
    x = b.node("Add", [b.node("Mul", [x, "factor"], "scaled"), "addend"], "moved")
    model = b.model(b.conv(x, "out", 8, 4), (1, 4, SIZE, SIZE))
    (item,) = find_channel_classes(Graph(model))
    assert set(item.writers) == {("first.weight", 0, 0), ("first.bias", 0, 0), ("factor", 0, 0)}
    assert item.readers == (("out.weight", 1),)
    shuffled, _ = _shuffled(model)
    _assert_same(model, shuffled, pictures(2))


@pytest.mark.parametrize(
    "cut", ["halves", "overlapping", "a part only", "read as a whole, too", "every second"]
)
def test_parts_of_a_layer_move_with_what_they_multiply_where_they_are_all_of_it(cut: str) -> None:
    """Coordinate Attention cuts the output of one layer into the gates of rows and of columns."""
    b = Builder()
    x = b.relu6(b.conv("input", "first", 3, 8), "first_act")
    gates = b.node("Sigmoid", [b.conv(x, "gates", 8, 16)], "sigmoid")
    ends = {"overlapping": [(0, 8), (4, 12)], "a part only": [(0, 8), (0, 8)]}.get(cut, [(0, 8), (8, 16)])
    step = 1
    if cut == "every second":
        ends, step = [(0, 16), (0, 16)], 2
    y = x
    for number, (start, stop) in enumerate(ends):
        names = [gates]
        for role, value in (("start", start), ("stop", stop), ("axis", 1), ("step", step)):
            names.append(b.constant(f"{role}{number}", 0.0))
            b.constants[names[-1]] = np.asarray([value], np.int64)
        y = b.node("Mul", [y, b.node("Slice", names, f"gate{number}")], f"gated{number}")
    if cut == "read as a whole, too":
        y = b.node("Add", [y, b.conv(gates, "mixed", 16, 8)], "both")
    model = b.model(b.conv(y, "out", 8, 4), (1, 4, SIZE, SIZE))
    moved = {entry for item in find_channel_classes(Graph(model)) for entry in item.writers}
    assert (("gates.weight", 0, 0) in moved) == (cut == "halves")
    assert (("gates.weight", 0, 8) in moved) == (cut == "halves")
    shuffled, _ = _shuffled(model)
    _assert_same(model, shuffled, pictures(2))
