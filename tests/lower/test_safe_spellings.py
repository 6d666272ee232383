"""What OpenVINO computes otherwise in INT8: the same numbers after the passes, and OpenVINO needs them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from lowering_graphs import Array, Builder, lower, operators, run, run_openvino

from edgeattn.lower.base import LoweringPass
from edgeattn.lower.own_zero_points import OwnZeroPoints
from edgeattn.lower.passes import passes_for
from edgeattn.lower.safe_reductions import SafeReductions

STEP = 0.02
ZERO = 110
STEP_BEHIND = 0.05
MIDDLE = 128
REDUCTIONS = ("GlobalMaxPool", "ReduceMax", "ReduceMin", "ReduceL1")


def model_of(
    op: str, *, quantized: bool = False, moved: bool = False, behind: str = "Flatten"
) -> onnx.ModelProto:
    """A reduction over a map whose result is quantized; its input is float unless `quantized`."""
    b = Builder()
    source = b.pair("x", STEP, ZERO) if quantized else "x"
    if moved:
        source = b.add("Transpose", source, perm=[0, 1, 3, 2])
    reduced = b.add(op, source) if op == "GlobalMaxPool" else b.add(op, source, axes=[2, 3], keepdims=1)
    return b.model({"x": (2, 16, 3, 2)}, b.add(behind, b.pair(reduced, STEP, ZERO)))


def feeds() -> dict[str, Array]:
    return {"x": np.random.default_rng(1).standard_normal((2, 16, 3, 2)).astype(np.float32)}


@pytest.mark.parametrize("behind", ["Flatten", "Abs"])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_the_numbers_stay_bit_for_bit(op: str, behind: str) -> None:
    model = model_of(op, behind=behind)
    lowered, changed = lower(model, SafeReductions())
    assert changed == ["safe-reductions"]
    np.testing.assert_array_equal(run(lowered, feeds()), run(model, feeds()))


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("op", ["GlobalMaxPool", "ReduceMax", "ReduceMin"])
def test_what_chooses_from_steps_stays(op: str, moved: bool) -> None:
    assert lower(model_of(op, quantized=True, moved=moved), SafeReductions())[1] == []


def test_a_result_that_stays_float_stays() -> None:
    b = Builder()
    model = b.model({"x": (1, 4, 3, 2)}, b.add("ReduceMax", "x", axes=[2, 3]))
    assert lower(model, SafeReductions())[1] == []
    assert operators(lower(model, *passes_for("openvino-cpu"))[0])[0] == "ReduceMax"


@pytest.mark.parametrize("behind", ["Flatten", "Abs"])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_openvino_is_right_with_the_pass_and_steps_off_without(op: str, behind: str) -> None:
    """Should the second half fail, OpenVINO rounds this reduction where it should, and needs the pass no more."""
    model = model_of(op, behind=behind)
    expected = run(model, feeds())
    lowered, _ = lower(model, *passes_for("openvino-cpu"))
    assert np.abs(run_openvino(lowered, feeds()) - expected).max() < 0.01 * STEP
    assert np.abs(run_openvino(model, feeds()) - expected).max() > 2 * STEP


def operation_of(op: str, *constants: Array, shared: bool = False, **attributes: object) -> onnx.ModelProto:
    """An operation between quantized tensors whose zero points are not 0, and perhaps one constant."""
    b = Builder()
    zero = [b.constant(np.uint8(MIDDLE)) for _ in range(2)]

    def pair(tensor: str, step: float, place: int) -> str:
        parameters = b.constant(np.float32(step)), zero[0 if shared else place]
        return b.add("DequantizeLinear", b.add("QuantizeLinear", tensor, *parameters), *parameters)

    names = [b.constant(value) for value in constants]
    result = b.add(op, pair("x", STEP, 0), *names, **attributes)
    return b.model({"x": (2, 16, 3, 2)}, b.add("Flatten", pair(result, STEP_BEHIND, 1)))


WIDER = np.array([0, 0, 0, 2, 0, 0, 0, 1], np.int64)
ZERO_POINTS: dict[str, tuple[onnx.ModelProto, LoweringPass]] = {
    "average": (
        operation_of("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
        SafeReductions(),
    ),
    "shared around a sum": (
        operation_of("ReduceSum", np.array([2, 3], np.int64), shared=True),
        OwnZeroPoints(),
    ),
    "shared around a pad": (operation_of("Pad", WIDER, shared=True), OwnZeroPoints()),
}


@pytest.mark.parametrize("name", ZERO_POINTS)
def test_operations_on_integers_with_a_zero_point_keep_their_numbers(name: str) -> None:
    model, item = ZERO_POINTS[name]
    lowered, changed = lower(model, item)
    assert changed == [item.name]
    np.testing.assert_array_equal(run(lowered, feeds()), run(model, feeds()))


@pytest.mark.parametrize("name", ZERO_POINTS)
def test_openvino_is_right_about_zero_points_with_the_pass_and_wrong_without(name: str) -> None:
    """Should the second half fail, OpenVINO computes this operation right, and needs the pass no more."""
    model, _ = ZERO_POINTS[name]
    expected = run(model, feeds())
    lowered, _ = lower(model, *passes_for("openvino-cpu"))
    assert np.abs(run_openvino(lowered, feeds()) - expected).max() < 1.01 * STEP_BEHIND
    assert np.abs(run_openvino(model, feeds()) - expected).max() > 2 * STEP_BEHIND


def test_zero_points_of_one_pair_each_stay() -> None:
    assert lower(operation_of("Pad", WIDER), OwnZeroPoints())[1] == []
