"""Convolutions compute in steps of their result: the integers stay what they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_graphs import Array, Builder, lower, operators, run, run_openvino

from edgeattn.lower.unit_steps import UnitSteps
from edgeattn.onnx_graph import Graph

SIZE = (9, 8)


def chain_model(
    seed: int = 0,
    *,
    step: float = 2.0**-4,
    zero_point: int = 128,
    bound: str = "",
    padding: int = 1,
    group: int = 1,
    bias: bool = True,
    last: str = "",
) -> onnx.ModelProto:
    """Two convolutions, the first one perhaps bounded, on grids whose steps are powers of two if `step` is one."""
    rng, b = np.random.default_rng(seed), Builder()
    factors = 2.0 ** rng.integers(-10, -7, 8)
    source = b.pair("x", 2.0**-5, 100)
    for index in range(2):
        channels = 4 if index == 0 else 8 // group
        weight = b.weight(rng.integers(-60, 61, (8, channels, 3, 3)), factors)
        shift = [b.constant((rng.integers(-99, 99, 8) * 2.0**-6).astype(np.float32))] if bias else []
        out = b.add("Conv", source, weight, *shift, pads=[padding] * 4, group=group if index else 1)
        if bound == "Clip":
            out = b.add("Clip", out, b.constant(np.float32(-2)), b.constant(np.float32(3)))
        elif bound:
            out = b.add(bound, out)
        source = b.pair(out, step, zero_point)
    return b.model({"x": (1, 4, *SIZE)}, b.add(last, source) if last else source)


def feeds(seed: int) -> dict[str, Array]:
    # On the input's grid: OpenVINO adds the zero point before it rounds, which moves what lies next to a middle.
    return {
        "x": (np.random.default_rng(seed).integers(-130, 131, (1, 4, *SIZE)) * 2.0**-5).astype(np.float32)
    }


@given(
    seed=st.integers(0, 10_000),
    bound=st.sampled_from(["", "Clip", "Relu", "LeakyRelu"]),
    zero_point=st.sampled_from([0, 128, 254]),
    group=st.sampled_from([1, 8]),
    bias=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_on_grids_of_powers_of_two_no_bit_changes(
    seed: int, bound: str, zero_point: int, group: int, bias: bool
) -> None:
    model = chain_model(seed, bound=bound, zero_point=zero_point, group=group, bias=bias)
    lowered, changed = lower(model, UnitSteps())
    assert changed == ["unit-steps"]
    assert sorted(operators(lowered)) == sorted(operators(model))
    expected = run(model, feeds(seed))
    np.testing.assert_array_equal(run(lowered, feeds(seed)), expected)
    np.testing.assert_array_equal(run_openvino(lowered, feeds(seed)), expected)


@given(seed=st.integers(0, 10_000), step=st.floats(0.01, 0.2))
@settings(max_examples=15, deadline=None)
def test_on_other_grids_hardly_a_value_moves_and_none_by_more_than_a_step(seed: int, step: float) -> None:
    rng, b = np.random.default_rng(seed), Builder()
    weight = b.weight(rng.integers(-60, 61, (8, 4, 3, 3)), rng.uniform(0.001, 0.01, 8))
    bias = b.constant(rng.standard_normal(8).astype(np.float32))
    out = b.pair(b.add("Conv", b.pair("x", 0.03, 100), weight, bias, pads=[1] * 4), step, 120)
    model = b.model({"x": (1, 4, *SIZE)}, out)
    moved = (run_openvino(lower(model, UnitSteps())[0], feeds(seed)) - run(model, feeds(seed))) / step
    assert np.abs(moved).max() < 1.01
    assert np.mean(np.abs(moved) > 0.01) < 0.01


def test_only_the_quantizing_scale_becomes_one() -> None:
    graph = Graph(lower(chain_model(bound="Clip"), UnitSteps())[0])
    scales: dict[str, list[float]] = {"QuantizeLinear": [], "DequantizeLinear": []}
    for node in graph.nodes:
        if node.op_type in scales and node.input[0] not in graph.constants:
            scales[node.op_type].append(float(graph.constants[node.input[1]]))
    assert scales["QuantizeLinear"] == [2.0**-5, 1.0, 1.0]
    assert scales["DequantizeLinear"] == [2.0**-5, 2.0**-4, 2.0**-4]


def test_a_weight_that_two_convolutions_share_is_rescaled_for_each() -> None:
    rng, b = np.random.default_rng(0), Builder()
    weight = b.weight(rng.integers(-60, 61, (4, 4, 1, 1)), np.full(4, 2.0**-8))
    source = b.pair("x", 2.0**-5, 100)
    parts = [b.pair(b.add("Conv", source, weight), step, 128) for step in (2.0**-3, 2.0**-5)]
    model = b.model({"x": (1, 4, *SIZE)}, b.add("Add", *parts))
    lowered, changed = lower(model, UnitSteps())
    assert changed == ["unit-steps"]
    np.testing.assert_array_equal(run(lowered, feeds(1)), run(model, feeds(1)))


@pytest.mark.parametrize("bound", ["Sigmoid", "HardSwish"])
def test_results_that_go_through_a_curve_keep_their_steps(bound: str) -> None:
    assert lower(chain_model(bound=bound), UnitSteps())[1] == []


def test_a_result_that_is_read_twice_keeps_its_steps() -> None:
    rng, b = np.random.default_rng(0), Builder()
    weight = b.weight(rng.integers(-60, 61, (4, 4, 1, 1)), np.full(4, 2.0**-8))
    out = b.add("Conv", b.pair("x", 2.0**-5, 100), weight)
    model = b.model({"x": (1, 4, *SIZE)}, b.add("Add", out, b.pair(out, 2.0**-4, 128)))
    assert lower(model, UnitSteps())[1] == []
