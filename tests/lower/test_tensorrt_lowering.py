"""TensorRT's graph: gates out of INT8, what is not quantized in float16, and nothing else in float32."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from attention_kinds import RECIPE_KINDS
from attention_networks import pictures, planned, quantized
from lowering_graphs import Builder, lower, operators, run
from onnx import helper

from edgeattn.errors import ModelError
from edgeattn.export.extents import EXTENTS_KEY, attach_extents, read_extents
from edgeattn.lower import lower_model
from edgeattn.lower.align_channels import AlignChannels
from edgeattn.lower.base import run_passes
from edgeattn.lower.copy_gates import CopyGates
from edgeattn.lower.explicit_swish import ExplicitSwish
from edgeattn.lower.extents import bound_extents
from edgeattn.lower.float_gates import FloatGates
from edgeattn.lower.gates import find_gates
from edgeattn.lower.half_products import CONVOLUTIONS, HalfProducts
from edgeattn.lower.half_remainder import HalfRemainder, float32_nodes, is_int8, remainder
from edgeattn.lower.split_pools import SplitPools, window_chain
from edgeattn.onnx_graph import Graph

TENSORRT = ("tensorrt", "tensorrt-rtx", "jetson-ssh")


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10((reference**2).sum() / max(((reference - other) ** 2).sum(), 1e-30)))


@pytest.mark.parametrize("kind", ["none", *RECIPE_KINDS])
def test_every_attention_is_lowered_to_float16_gates_between_int8_layers(kind: str) -> None:
    model = quantized(kind)
    lowered, _ = lower_model(model, "tensorrt-rtx")
    graph = Graph(lowered)
    types = graph.element_types()
    left, kept = remainder(graph)
    assert not kept
    assert not [node.name for node in left]
    gates = find_gates(graph)
    assert bool(gates) == (kind != "none")
    for gate in gates:
        assert {types[node.output[0]] for node in gate.nodes if node.op_type != "Cast"} <= {"float16"}
    outside = [n for n in graph.nodes if n.op_type == "Conv" and types[n.output[0]] == "float32"]
    assert len(outside) == 3
    assert all(is_int8(graph, node) for node in outside)
    # What TensorRT for RTX does not compile in float32 for Turing.
    assert [types[n.output[0]] for n in graph.nodes if n.op_type == "Gemm"] == ["float16"]


@pytest.mark.parametrize("kind", RECIPE_KINDS)
def test_lowering_for_tensorrt_comes_nearer_to_the_float_network(kind: str) -> None:
    """Pairs inside gates round; float16 does not, at eight bits."""
    floating, _ = planned(kind)
    model = quantized(kind)
    lowered, changed = lower_model(model, "tensorrt-rtx")
    assert "float-gates" in changed
    image = pictures(1, seed=9)[0]
    truth, before, after = (run(item, {"input": image}) for item in (floating, model, lowered))
    assert sqnr_db(truth, after) > sqnr_db(truth, before) - 1.0
    assert sqnr_db(truth, after) > 15.0


def int8_layers(graph: Graph, *kinds: str) -> list[tuple[str, str]]:
    """Return operation and element type of the layers that read dequantized tensors, through casts."""
    types, found = graph.element_types(), []
    for node in graph.nodes:
        source = graph.producer.get(node.input[0])
        while source is not None and source.op_type == "Cast":
            source = graph.producer.get(source.input[0])
        if node.op_type in kinds and source is not None and source.op_type == "DequantizeLinear":
            found.append((node.op_type, types[node.output[0]]))
    return found


def test_int8_layers_are_named_float16_where_int8_kernels_are_missing() -> None:
    model = quantized("coord")
    lowered, changed = lower_model(model, "tensorrt-rtx", more=[HalfProducts(CONVOLUTIONS)])
    assert changed[-2:] == ["half-products", "half-products"]
    assert {kind for _, kind in int8_layers(Graph(lowered), "Conv", "Gemm")} == {"float16"}
    image = pictures(1, seed=3)[0]
    before, after = (run(item, {"input": image}) for item in (lower_model(model, "tensorrt-rtx")[0], lowered))
    # Rounding to float16 moves few values over the edge of a step.
    assert sqnr_db(before, after) > 25


@pytest.mark.parametrize(("extent", "stays"), [(1e5, True), (1e-6, True), (100.0, False)])
def test_products_that_float16_cannot_hold_stay_float32(extent: float, stays: bool) -> None:
    graph = Graph(quantized("none"))
    gemm = next(node for node in graph.nodes if node.op_type == "Gemm")
    graph.metadata[EXTENTS_KEY] = json.dumps({**read_extents(graph), gemm.output[0]: extent})
    changed = run_passes(graph, [HalfProducts()])
    assert (changed == []) is stays
    assert HalfProducts().ensures(Graph(quantized("none"))) != ""


def test_one_lowered_file_serves_all_tensorrt_targets() -> None:
    model = quantized("coord")
    files = {lower_model(model, target)[0].SerializeToString(deterministic=True) for target in TENSORRT}
    assert len(files) == 1


def test_float_models_are_left_alone() -> None:
    floating, _ = planned("eca")
    assert lower_model(floating, "tensorrt-rtx")[1] == []


def test_the_export_carries_the_extents_that_calibration_showed() -> None:
    graph, plan = planned("eca")
    extents = read_extents(Graph(quantized("eca")))
    assert set(extents) == set(plan.extents) >= set(plan.activations)
    image = pictures(8)[0]
    names = [node.output[0] for node in Graph(graph).nodes if node.op_type == "Sigmoid"]
    probe = Graph(graph).to_model(names)
    probe.graph.output.pop(0)
    assert 0 < float(run(probe, {"input": image}).max()) <= extents[names[0]] * (1 + 1e-5)


@pytest.mark.parametrize(
    ("extent", "stays"), [(1e5, True), (20_000.0, True), (1e-6, True), (16_000.0, False), (0.0, False)]
)
def test_tensors_that_float16_cannot_hold_stay_float32_and_are_named(extent: float, stays: bool) -> None:
    model = quantized("eca")
    graph = Graph(model)
    pooled = next(node.output[0] for node in graph.nodes if node.op_type == "ReduceMean")
    graph.metadata[EXTENTS_KEY] = json.dumps({**read_extents(graph), pooled: extent})
    lowered = Graph(lower_model(graph.to_model(), "tensorrt-rtx")[0])
    types = lowered.element_types()
    assert types[pooled] == ("float32" if stays else "float16")
    assert (pooled in float32_nodes(lowered)) is stays
    # Nothing else is stranded: what reads it is cast back.
    assert types[next(n.output[0] for n in lowered.nodes if n.op_type == "Sigmoid")] == "float16"


def test_without_calibration_bounds_follow_from_the_graph() -> None:
    graph = Graph(quantized("se"))
    del graph.metadata[EXTENTS_KEY]
    bounds = bound_extents(graph)
    assert all(name in bounds for node in graph.nodes for name in node.output if "quantized" not in name)
    measured = read_extents(Graph(quantized("se")))
    assert all(bounds[name] >= value * 0.99 for name, value in measured.items() if name in bounds)


@pytest.mark.parametrize("text", ["[]", "{", '{"a": "x"}', '{"a": -1}', '{"a": Infinity}'])
def test_a_damaged_entry_is_refused(text: str) -> None:
    model = quantized("eca")
    graph = Graph(model)
    graph.metadata[EXTENTS_KEY] = text
    with pytest.raises(ModelError, match=r"edgeattn\.extents"):
        read_extents(graph)


def test_no_extents_write_no_entry() -> None:
    model = quantized("none")
    before = len(model.metadata_props)
    attach_extents(model, {})
    assert len(model.metadata_props) == before


def test_swish_counts_as_a_gate() -> None:
    b = Builder()
    x = b.add("Conv", "x", b.constant(np.ones((4, 3, 1, 1), np.float32)))
    product = b.add("Mul", x, b.pair(b.add("Sigmoid", x), 1 / 255, 0))
    model = b.model({"x": (1, 3, 4, 4)}, b.pair(product, 0.1, 20))
    (gate,) = find_gates(Graph(model))
    assert gate.source == x
    graph = Graph(model)
    run_passes(graph, [FloatGates()])
    assert [node.op_type for node in graph.nodes].count("QuantizeLinear") == 1


def test_a_product_of_two_maps_is_no_gate() -> None:
    b = Builder()
    one, other = (b.add("Relu", b.add("Sigmoid", name)) for name in ("x", "y"))
    assert find_gates(Graph(b.model({"x": (1, 4), "y": (1, 4)}, b.add("Mul", one, other)))) == []


def test_a_clip_takes_the_place_of_a_pair_whose_range_stood_for_a_relu() -> None:
    """The export leaves a ReLU out that the range implies; without the pair it must come back."""
    b = Builder()
    weight = b.weight(np.diag([100, -100, 50, -50]).reshape(4, 4, 1, 1), np.full(4, 0.01))
    pooled = b.add("GlobalAveragePool", b.pair("x", 0.02, 128))
    squeezed = b.pair(b.add("Conv", b.pair(pooled, 0.02, 128), weight), 0.01, 0)
    gate = b.add("Sigmoid", b.add("Conv", squeezed, weight))
    model = b.model({"x": (1, 4, 2, 2)}, b.add("Mul", b.pair("x", 0.02, 128), gate))
    lowered = Graph(model)
    run_passes(lowered, [FloatGates()])
    assert "Clip" in operators(lowered.to_model())
    x = np.full((1, 4, 2, 2), 0.8, np.float32)
    np.testing.assert_allclose(run(lowered.to_model(), {"x": x}), run(model, {"x": x}), atol=0.02)


def test_a_gate_with_two_readers_becomes_two_gates_and_views_of_one_stay() -> None:
    b = Builder()
    gate = b.add("Sigmoid", "x")
    rest = b.add("Sub", b.constant(np.float32(1)), gate)
    both = b.add("Add", b.add("Mul", "x", gate), rest)
    model = b.model({"x": (1, 4, 3, 3)}, both)
    graph = Graph(model)
    assert CopyGates().ensures(graph) != ""
    assert run_passes(graph, [CopyGates()]) == ["copy-gates"]
    assert operators(graph.to_model()).count("Sigmoid") == 2
    x = np.random.default_rng(0).normal(size=(1, 4, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(run(model, {"x": x}), run(graph.to_model(), {"x": x}))
    b = Builder()
    gate = b.add("Sigmoid", "x")
    parts = [b.add("Reshape", gate, b.constant(np.array(shape, np.int64))) for shape in ((4, 1), (2, 2))]
    views = b.model({"x": (1, 4)}, b.add("MatMul", b.add("Reshape", parts[0], parts_shape(b)), parts[1]))
    assert run_passes(Graph(views), [CopyGates()]) == []


def parts_shape(b: Builder) -> str:
    return b.constant(np.array((2, 2), np.int64))


def test_channels_are_aligned_exactly() -> None:
    rng = np.random.default_rng(0)
    b = Builder()

    def conv(x: str, ins: int, outs: int) -> str:
        weight = rng.normal(size=(outs, ins, 1, 1)).astype(np.float32)
        return b.add("Conv", x, b.constant(weight), b.constant(rng.normal(size=outs).astype(np.float32)))

    squeezed = b.add("HardSwish", conv(b.add("GlobalAveragePool", "x"), 12, 5))
    model = b.model({"x": (1, 12, 3, 3)}, b.add("Mul", "x", b.add("Sigmoid", conv(squeezed, 5, 12))))
    graph = Graph(model)
    assert run_passes(graph, [AlignChannels()]) == ["align-channels"]
    shapes = sorted(
        graph.constants[node.input[1]].shape[:2] for node in graph.nodes if node.op_type == "Conv"
    )
    assert shapes == [(8, 12), (12, 8)]
    x = rng.normal(size=(1, 12, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(run(model, {"x": x}), run(graph.to_model(), {"x": x}))


@pytest.mark.parametrize(
    ("size", "windows"), [(1, []), (7, [7]), (28, [7, 4]), (112, [8, 7, 2]), (11, None), (22, None)]
)
def test_windows_multiply_to_the_size(size: int, windows: list[int] | None) -> None:
    assert window_chain(size) == windows


@pytest.mark.parametrize(
    "kind", ["ReduceMean", "GlobalAveragePool", "AveragePool", "ReduceMax", "GlobalMaxPool"]
)
def test_whole_axes_are_reduced_in_small_windows(kind: str) -> None:
    attributes: dict[str, object] = {}
    if kind.startswith("Reduce"):
        attributes = {"axes": [2], "keepdims": 1}
    elif kind == "AveragePool":
        attributes = {"kernel_shape": [28, 12], "strides": [28, 12]}
    b = Builder()
    model = b.model({"x": (1, 3, 28, 12)}, b.add(kind, "x", **attributes))
    graph = Graph(model)
    assert run_passes(graph, [SplitPools()]) == ["split-pools"]
    assert all(
        max(onnx.helper.get_node_attr_value(n, "kernel_shape")) <= 8
        for n in graph.nodes
        if "Pool" in n.op_type
    )
    x = np.random.default_rng(0).normal(size=(1, 3, 28, 12)).astype(np.float32)
    np.testing.assert_allclose(run(model, {"x": x}), run(graph.to_model(), {"x": x}), atol=1e-6)


def test_pools_that_overlap_are_left_alone() -> None:
    b = Builder()
    model = b.model({"x": (1, 3, 28, 28)}, b.add("AveragePool", "x", kernel_shape=[9, 9], strides=[1, 1]))
    assert run_passes(Graph(model), [SplitPools()]) == []


@pytest.mark.parametrize(
    ("kind", "attributes"), [("HardSwish", {}), ("HardSigmoid", {"alpha": 0.25, "beta": 0.4})]
)
def test_named_activations_are_spelled_out(kind: str, attributes: dict[str, float]) -> None:
    b = Builder()
    model = b.model({"x": (1, 101)}, b.add(kind, "x", **attributes))
    graph = Graph(model)
    assert run_passes(graph, [ExplicitSwish()]) == ["explicit-swish"]
    x = np.linspace(-8, 8, 101, dtype=np.float32)[None]
    np.testing.assert_allclose(run(model, {"x": x}), run(graph.to_model(), {"x": x}), atol=2e-6)


def test_a_remainder_that_comes_back_is_noticed() -> None:
    """The pass's own check, with the fault planted."""
    graph = Graph(lower_model(quantized("eca"), "tensorrt-rtx")[0])
    assert HalfRemainder().ensures(graph) == ""
    sigmoid = next(node for node in graph.nodes if node.op_type == "Sigmoid")
    single = helper.make_node("Cast", [sigmoid.input[0]], ["single"], name="single", to=1)
    back = helper.make_node("Cast", ["late"], [sigmoid.output[0]], name="back", to=10)
    sigmoid.input[0], sigmoid.output[0] = "single", "late"
    graph.nodes += [single, back]
    graph.sort()
    assert "float32" in HalfRemainder().ensures(graph)


def test_factors_of_a_size_stay_float32() -> None:
    """ONNX has them in no other type, whatever the map's."""
    b = Builder()
    source = b.add("Sigmoid", b.pair("x", 0.02, 0, np.int8))
    factors = b.constant(np.array([1, 1, 2, 2], np.float32))
    resized = b.add("Resize", source, "", factors, mode="nearest")
    model = b.model({"x": (1, 4, 6, 6)}, b.pair(resized, 0.01, 0, np.int8))
    attach_extents(model, dict.fromkeys((source, resized), 1.0))
    lowered, changed = lower(model, HalfRemainder())
    assert changed == ["half-remainder"]
    types = Graph(lowered).element_types()
    (node,) = [node for node in lowered.graph.node if node.op_type == "Resize"]
    assert (types[node.input[0]], types[node.input[2]]) == ("float16", "float32")


def test_operators_without_float16_stay_float32_and_are_named() -> None:
    b = Builder()
    source = b.add("Sigmoid", b.pair("x", 0.02, 0, np.int8))
    bent = b.add("Celu", source, alpha=0.5)
    model = b.model({"x": (1, 4, 6, 6)}, b.pair(bent, 0.01, 0, np.int8))
    attach_extents(model, dict.fromkeys((source, bent), 1.0))
    lowered, _ = lower(model, HalfRemainder())
    graph = Graph(lowered)
    assert graph.element_types()[bent] == "float32"
    assert float32_nodes(graph) == [bent]


def test_a_choice_between_floats_is_float16_although_its_condition_is_not() -> None:
    b = Builder()
    source = b.add("Sigmoid", b.pair("x", 0.02, 0, np.int8))
    half = b.constant(np.float32(0.5))
    chosen = b.add("Where", b.add("Greater", source, half), source, half)
    model = b.model({"x": (1, 4, 6, 6)}, b.pair(chosen, 0.01, 0, np.int8))
    attach_extents(model, dict.fromkeys((source, chosen), 1.0))
    graph = Graph(lower(model, HalfRemainder())[0])
    assert graph.element_types()[chosen] == "float16"
    assert float32_nodes(graph) == []
