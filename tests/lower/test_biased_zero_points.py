"""Zero points of what convolutions read go into biases: no bit changes where none may."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_graphs import Array, Builder, lower, run, run_openvino

from edgeattn.lower.biased_zero_points import BiasedZeroPoints
from edgeattn.lower.unit_steps import UnitSteps
from edgeattn.onnx_graph import Graph

SIZE = (7, 6)


def read_model(
    seed: int = 0,
    *,
    op: str = "Conv",
    channels: int = 24,
    zero_point: int = 117,
    dtype: type[np.integer] = np.uint8,  # type: ignore[type-arg]
    exact: bool = True,
    bits: int = 4,
    largest: int = 60,
    bias: bool = True,
    **options: object,
) -> onnx.ModelProto:
    """An operation on a tensor with a zero point; `exact` has scales of powers of two and weights' of `bits` bits."""
    rng, b = np.random.default_rng(seed), Builder()
    step = 2.0**-5 if exact else 0.03
    scales = rng.integers(2 ** (bits - 1), 2**bits, 8) * 2.0**-12 if exact else rng.uniform(0.001, 0.01, 8)
    shape = (8, channels, 1, 1) if op == "Conv" else (8, channels)
    weight = b.weight(rng.integers(-largest, largest + 1, shape), scales)
    unit = 2.0**-12 if exact else 0.7
    shift = [b.constant((rng.integers(-999, 999, 8) * unit).astype(np.float32))] if bias else []
    source = b.pair("x", step, zero_point, dtype)
    settings = options if op == "Conv" else {"transB": 1, **options}
    result = b.add(op, source, weight, *shift, **settings)
    return b.model(
        {"x": (1, channels, *SIZE) if op == "Conv" else (5, channels)}, b.pair(result, 2 * step, 128)
    )


def feeds(model: onnx.ModelProto, seed: int) -> dict[str, Array]:
    shape = [item.dim_value for item in model.graph.input[0].type.tensor_type.shape.dim]
    # On the input's grid: OpenVINO adds the zero point before it rounds, which moves what lies next to a middle.
    return {"x": (np.random.default_rng(seed).integers(-130, 131, shape) * 2.0**-5).astype(np.float32)}


@given(
    seed=st.integers(0, 10_000),
    op=st.sampled_from(["Conv", "Gemm"]),
    channels=st.sampled_from([1, 3, 16, 96]),
    zero_point=st.integers(1, 255),
    bias=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_on_grids_of_powers_of_two_no_bit_changes(
    seed: int, op: str, channels: int, zero_point: int, bias: bool
) -> None:
    model = read_model(seed, op=op, channels=channels, zero_point=zero_point, bias=bias)
    lowered, changed = lower(model, BiasedZeroPoints(), UnitSteps())
    assert changed == ["biased-zero-points", "unit-steps"]
    expected = run(model, feeds(model, seed))
    np.testing.assert_array_equal(run(lowered, feeds(model, seed)), expected)
    np.testing.assert_array_equal(run_openvino(lowered, feeds(model, seed)), expected)


@given(seed=st.integers(0, 10_000), zero_point=st.integers(1, 255))
@settings(max_examples=15, deadline=None)
def test_on_other_grids_hardly_a_value_moves_and_none_by_more_than_a_step(seed: int, zero_point: int) -> None:
    model = read_model(seed, exact=False, zero_point=zero_point)
    lowered, changed = lower(model, BiasedZeroPoints())
    assert changed == ["biased-zero-points"]
    moved = (run_openvino(lowered, feeds(model, seed)) - run(model, feeds(model, seed))) / 0.06
    assert np.abs(moved).max() < 1.01
    assert np.mean(np.abs(moved) > 0.01) < 0.01


def test_only_the_operation_reads_integers_without_zero_point() -> None:
    """What else reads the tensor keeps its own DequantizeLinear."""
    rng, b = np.random.default_rng(0), Builder()
    source = b.pair("x", 2.0**-5, 100)
    weight = b.weight(rng.integers(-60, 61, (4, 4, 1, 1)), np.full(4, 2.0**-8))
    branch = b.pair(b.add("Conv", source, weight), 2.0**-5, 128)
    model = b.model({"x": (1, 4, *SIZE)}, b.add("Add", source, branch))
    lowered, changed = lower(model, BiasedZeroPoints())
    assert changed == ["biased-zero-points"]
    graph = Graph(lowered)
    read = {
        node.op_type: graph.producer[node.input[0]] for node in graph.nodes if node.op_type in ("Add", "Conv")
    }
    zero_points = {op: int(graph.constants[node.input[2]]) for op, node in read.items()}
    assert zero_points == {"Conv": 0, "Add": 100}
    np.testing.assert_array_equal(run(lowered, feeds(model, 1)), run(model, feeds(model, 1)))


@pytest.mark.parametrize(
    "model",
    [
        read_model(zero_point=0),
        read_model(pads=[0, 0, 1, 1]),
        read_model(auto_pad="SAME_UPPER"),
        # 255 times the sum of some 1200 positive weights of up to 127 does not fit the 24 bits of a float32.
        read_model(channels=2400, largest=127, exact=False),
        # 255 * 60 * 12 has 18 bits, and the weights' scales 8 more.
        read_model(bits=8),
        read_model(op="Gemm", alpha=2.0),
    ],
    ids=["no zero point", "padded", "padded by name", "too large", "no longer exact", "scaled"],
)
def test_other_operations_keep_the_zero_point(model: onnx.ModelProto) -> None:
    assert lower(model, BiasedZeroPoints())[1] == []


def test_the_size_of_the_accumulator_is_what_counts() -> None:
    """As many channels with smaller weights fit."""
    assert lower(read_model(channels=2400, largest=9, exact=False), BiasedZeroPoints())[1] != []
