"""Chains of reshapes and transposes become one move, and no value ends up elsewhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_graphs import Builder, lower, operators, run

from edgeattn.lower.merge_moves import MergeMoves, merged_axes
from edgeattn.onnx_graph import attribute

# (N, C, H, W) -> windows of 2 x 2 -> (N * 4, H * W / 4, C), and back: MobileViT.
UNFOLD = (
    ("Reshape", (2 * 16 * 3, 2, 4, 2)),
    ("Transpose", (0, 2, 1, 3)),
    ("Reshape", (2, 16, 12, 4)),
    ("Transpose", (0, 3, 2, 1)),
    ("Reshape", (8, 12, 16)),
)
FOLD = (
    ("Reshape", (2, 4, 12, 16)),
    ("Transpose", (0, 3, 2, 1)),
    ("Reshape", (2 * 16 * 3, 4, 2, 2)),
    ("Transpose", (0, 2, 1, 3)),
    ("Reshape", (2, 16, 6, 8)),
)


def chain(b: Builder, name: str, steps: Any, pairs: Any = ()) -> str:
    """Moves, with a pair behind those whose number is in `pairs`."""
    for index, (kind, value) in enumerate(steps):
        if kind == "Reshape":
            name = b.add("Reshape", name, b.constant(np.asarray(value, np.int64)))
        else:
            name = b.add("Transpose", name, perm=list(value))
        if index in pairs:
            name = b.pair(name, 0.02, 120)
    return name


def transposes(model: Any) -> list[list[int]]:
    return [attribute(node, "perm") for node in model.graph.node if node.op_type == "Transpose"]


@pytest.mark.parametrize("pairs", [(), (4,), (0, 1, 2, 3, 4), (3,)])
@pytest.mark.parametrize("float_source", [False, True])
@pytest.mark.parametrize(("shape", "steps"), [((2, 16, 6, 8), UNFOLD), ((8, 12, 16), FOLD)])
def test_windows_are_one_move_of_whole_pixels(shape: Any, steps: Any, pairs: Any, float_source: bool) -> None:
    b = Builder()
    source = "x" if float_source else b.pair("x", 0.02, 120)
    result = b.add("Relu", chain(b, source, steps, pairs))
    model = b.model({"x": shape}, b.pair(result, 0.02, 120))
    lowered, changed = lower(model, MergeMoves())
    assert changed == ["merge-moves"]
    moved = transposes(lowered)
    # One of the two is the change of layout that the runtime makes itself, the other way round.
    assert len(moved) == 2
    assert [0, 2, 3, 1] in moved or [0, 3, 1, 2] in moved
    assert all(perm[-1] == len(perm) - 1 for perm in moved if len(perm) > 4)
    # Layers are compared by name: what the chain wrote is still there.
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    assert any(relu.input[0] in node.output for node in lowered.graph.node)
    feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    np.testing.assert_array_equal(run(model, feeds), run(lowered, feeds))


@st.composite
def moves(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Any]]:
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=2, max_size=4)))
    first, steps = shape, []
    for _ in range(draw(st.integers(2, 6))):
        if draw(st.booleans()):
            order = tuple(draw(st.permutations(range(len(shape)))))
            steps.append(("Transpose", order))
            shape = tuple(shape[axis] for axis in order)
            continue
        left, new = math.prod(shape), []
        while left > 1 and len(new) < 4:
            divisors = [size for size in range(1, left + 1) if left % size == 0]
            new.append(draw(st.sampled_from(divisors)))
            left //= new[-1]
        shape = (*new, left)
        steps.append(("Reshape", shape))
    return first, steps


@given(case=moves(), quantized=st.booleans(), inner=st.sets(st.integers(0, 5)))
@settings(max_examples=60, deadline=None)
def test_any_chain_moves_every_value_where_it_was(case: Any, quantized: bool, inner: set[int]) -> None:
    shape, steps = case
    values = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    axes = merged_axes(shape, steps)
    expected = values
    for kind, value in steps:
        expected = expected.reshape(value) if kind == "Reshape" else expected.transpose(value)
    if axes is not None:
        sizes, order = axes
        got = values.reshape(sizes).transpose(order) if sizes else values
        np.testing.assert_array_equal(got.reshape(expected.shape), expected)
    b = Builder()
    source = b.pair("x", 0.02, 120) if quantized else "x"
    model = b.model({"x": shape}, b.add("Relu", chain(b, source, steps, inner)))
    lowered, _ = lower(model, MergeMoves(min_run=1))
    assert operators(lowered).count("Transpose") <= operators(model).count("Transpose")
    feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    np.testing.assert_array_equal(run(model, feeds), run(lowered, feeds))


def test_axes_that_no_factors_fit_are_left() -> None:
    """(2, 3) turned and read as (2, 3) again cuts an axis of three in two."""
    assert merged_axes((2, 3), [("Transpose", (1, 0)), ("Reshape", (2, 3)), ("Transpose", (1, 0))]) is None
    assert merged_axes((2, 3), [("Transpose", (1, 0)), ("Reshape", (6,))]) == ((2, 3), (1, 0))


def test_moves_that_somebody_else_reads_are_left() -> None:
    b = Builder()
    head = chain(b, b.pair("x", 0.02, 120), UNFOLD[:3])
    tail = chain(b, head, UNFOLD[3:])
    model = b.model({"x": (2, 16, 6, 8)}, b.add("Add", b.add("ReduceMax", head), tail))
    assert lower(model, MergeMoves())[1] == []


def test_pairs_on_another_grid_end_a_chain() -> None:
    b = Builder()
    head = b.pair(chain(b, b.pair("x", 0.02, 120), UNFOLD[:3]), 0.03, 120)
    model = b.model({"x": (2, 16, 6, 8)}, b.add("Relu", chain(b, head, UNFOLD[3:])))
    assert lower(model, MergeMoves())[1] == []
