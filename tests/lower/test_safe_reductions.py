"""Reductions of floats to quantized results: the same numbers after the pass, and OpenVINO needs it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from lowering_graphs import Array, Builder, lower, operators, run, run_openvino

from edgeattn.lower.passes import passes_for
from edgeattn.lower.safe_reductions import SafeReductions

STEP = 0.02
ZERO = 110
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
