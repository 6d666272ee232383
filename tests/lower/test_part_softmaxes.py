"""ONNX Runtime's integer softmax overflows in fine steps: there the softmax stays float, and no number changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_graphs import (
    Array,
    Builder,
    lower,
    onnx_runtime_before,
    operators,
    operators_after_optimization,
    run,
)

from edgeattn.lower.part_softmaxes import PartSoftmaxes, broken_softmaxes
from edgeattn.lower.passes import passes_for
from edgeattn.onnx_graph import Graph

SCORE_STEP = 0.004


def softmax_model(
    step: float,
    shape: tuple[int, ...] = (2, 4),
    *,
    axis: int = -1,
    dtype: type[np.integer[Any]] = np.uint8,
    zero_point: int = 0,
    quantized_scores: bool = True,
) -> onnx.ModelProto:
    """Scores within half a unit: all probabilities of a row are near one over its length."""
    b = Builder()
    scores = b.pair("x", SCORE_STEP, 128 + np.iinfo(dtype).min, dtype) if quantized_scores else "x"
    return b.model({"x": shape}, b.pair(b.add("Softmax", scores, axis=axis), step, zero_point, dtype))


def scores_like(shape: tuple[int, ...], seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)}


def steps_apart(one: Array, other: Array, step: float) -> float:
    return float(np.abs(one - other).max() / step)


@given(
    seed=st.integers(0, 10_000),
    length=st.integers(2, 40),
    levels=st.integers(100, 255),
    inner=st.booleans(),
    signed=st.sampled_from([None, 0, -128]),
)
@settings(max_examples=40, deadline=None)
def test_onnx_runtime_computes_what_the_graph_says(
    seed: int, length: int, levels: int, inner: bool, signed: int | None
) -> None:
    # The largest probability there can be takes most of the levels, as calibration would have it.
    largest = 1 / (1 + (length - 1) * np.exp(-1.0))
    step = largest / (levels if signed != 0 else levels // 2)
    shape = (2, length, 3) if inner else (2, length)
    kind: dict[str, Any] = {} if signed is None else {"dtype": np.int8, "zero_point": signed}
    model = softmax_model(step, shape, axis=1, **kind)
    lowered = lower(model, PartSoftmaxes())[0]
    feeds = scores_like(shape, seed)
    expected = run(model, feeds)
    np.testing.assert_array_equal(run(lowered, feeds), expected)
    # The integer kernel cuts 1 / scale to a whole number, which is a step for a probability of 1, and rounds.
    assert steps_apart(run(lowered, feeds, optimized=True), expected, step) < 2.01


def test_without_the_pass_onnx_runtime_before_1_32_is_wrong() -> None:
    # Once none before it is supported, only what is slow needs the pass.
    step = 0.4 / 255
    model, feeds = softmax_model(step), scores_like((2, 4))
    apart = steps_apart(run(model, feeds, optimized=True), run(model, feeds), step)
    assert apart > 50 if onnx_runtime_before(1, 32) else apart < 2.01


@pytest.mark.parametrize(
    "model",
    [
        softmax_model(1 / 255),
        softmax_model(0.4 / 255, (2, 40)),
        softmax_model(1 / 255, (1, 31, 33)),
        softmax_model(1 / 255, dtype=np.int8, zero_point=-128),
        softmax_model(0.4 / 255, quantized_scores=False),
    ],
    ids=[
        "coarse steps",
        "fine steps of many",
        "few enough",
        "signed with the lowest zero point",
        "float scores",
    ],
)
def test_other_softmaxes_keep_their_kernel(model: onnx.ModelProto) -> None:
    assert lower(model, PartSoftmaxes())[1] == []


def test_an_axis_that_there_is_not_is_somebody_elses_complaint() -> None:
    graph = Graph(softmax_model(1 / 255))
    next(node for node in graph.nodes if node.op_type == "Softmax").attribute[0].i = 7
    assert [node.op_type for node, _ in broken_softmaxes(graph)] == ["Softmax"]


def test_large_softmaxes_are_computed_in_float(tmp_path: Path) -> None:
    """The integer kernel takes twice the time."""
    model = softmax_model(1 / 255, (4, 16, 16))
    lowered, changed = lower(model, PartSoftmaxes())
    assert changed == ["part-softmaxes"]
    assert "QLinearSoftmax" in operators_after_optimization(model, tmp_path)
    assert "QLinearSoftmax" not in operators_after_optimization(lowered, tmp_path)
    feeds = scores_like((4, 16, 16))
    np.testing.assert_array_equal(run(lowered, feeds, optimized=True), run(model, feeds))


def test_every_spelling_for_onnx_runtime_has_the_pass(tmp_path: Path) -> None:
    model = softmax_model(0.4 / 255)
    assert "QLinearSoftmax" in operators_after_optimization(model, tmp_path)
    for target in ("ort-cpu", "ort-portable", "ort-web"):
        lowered, changed = lower(model, *passes_for(target))
        assert "part-softmaxes" in changed, target
        assert "QLinearSoftmax" not in operators_after_optimization(lowered, tmp_path), target
    assert "LeakyRelu" not in operators(lower(model, *passes_for("openvino-cpu"))[0])
