"""Where float16 would round to 0 what keeps a divisor from it, the division stays float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from lowering_graphs import Array, Builder, lower, operators, run

from edgeattn.export.extents import attach_extents
from edgeattn.lower.divisor_guards import guarded_nodes
from edgeattn.lower.half_remainder import HalfRemainder, float32_nodes
from edgeattn.onnx_graph import Graph

SHAPE = (1, 4, 3, 3)


def normalized(kind: str, guard: float) -> onnx.ModelProto:
    """A map by its length at each place, as torch spells it, by hand with a root, or with a maximum."""
    b = Builder()
    x = b.pair("x", 0.02, 0, np.int8)
    tiny = b.constant(np.float32(guard))
    if kind == "clip":
        length = b.add("ReduceL2", x, axes=[1], keepdims=1)
        divisor = b.add("Expand", b.add("Clip", length, tiny), b.constant(np.asarray(SHAPE)))
    elif kind == "maximum":
        divisor = b.add("Max", b.add("ReduceL2", x, axes=[1], keepdims=1), tiny)
    else:
        squares = b.add("ReduceSum", b.add("Mul", x, x), b.constant(np.asarray([1])), keepdims=1)
        divisor = b.add("Sqrt", b.add("Add", squares, tiny))
    if kind == "reciprocal":
        quotient = b.add("Mul", x, b.add("Reciprocal", divisor))
    else:
        quotient = b.add("Div", x, divisor)
    model = b.model({"x": SHAPE}, b.pair(quotient, 0.01, 0, np.int8))
    attach_extents(model, {name: 2.0 for node in model.graph.node for name in node.output})
    return model


def image() -> dict[str, Array]:
    """At one place all channels are 0."""
    values = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
    values[0, :, 1, 1] = 0
    return {"x": values}


KINDS = ("clip", "maximum", "root", "reciprocal")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_divided_by_a_length_of_nothing_is_nothing(kind: str) -> None:
    model = normalized(kind, 1e-12)
    lowered, _ = lower(model, HalfRemainder())
    got = run(lowered, image())
    np.testing.assert_array_equal(got[0, :, 1, 1], 0)
    assert np.abs(got - run(model, image())).max() < 0.0101
    last = "Reciprocal" if kind == "reciprocal" else "Div"
    kept = {node.op_type for node in Graph(model).nodes if node.name in float32_nodes(Graph(lowered))}
    assert last in kept


@pytest.mark.parametrize("kind", KINDS)
def test_constants_that_float16_has_keep_nothing_back(kind: str) -> None:
    graph = Graph(normalized(kind, 1e-3))
    assert guarded_nodes(graph) == set()
    assert "Cast" in operators(lower(normalized(kind, 1e-3), HalfRemainder())[0])


def test_without_it_the_quotient_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.lower.half_remainder.guarded_nodes", lambda graph: set())
    lowered, _ = lower(normalized("clip", 1e-12), HalfRemainder())
    wrong, right = run(lowered, image()), run(normalized("clip", 1e-12), image())
    assert np.abs(wrong - right)[0, :, 1, 1].max() > 0.5 or not np.isfinite(wrong).all()


def test_a_constant_that_nothing_is_divided_by_keeps_nothing_back() -> None:
    b = Builder()
    x = b.add("Add", b.pair("x", 0.02, 0, np.int8), b.constant(np.float32(1e-12)))
    graph = Graph(b.model({"x": SHAPE}, b.add("Div", b.add("Relu", x), b.constant(np.float32(3)))))
    assert guarded_nodes(graph) == set()


def test_many_ways_from_a_constant_are_looked_at_once() -> None:
    """A chain of joins has two to the power of its length of them."""
    b = Builder()
    x = b.add("Max", "x", b.constant(np.float32(1e-12)))
    for _ in range(200):
        x = b.add("Max", x, x)
    graph = Graph(b.model({"x": SHAPE}, b.add("Div", "x", x)))
    assert len(guarded_nodes(graph)) == 202
