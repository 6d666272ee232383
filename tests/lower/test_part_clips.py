"""OpenVINO moves a clip's bounds to levels of the pair before it: with an identity between them it does not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_graphs import Array, Builder, lower, operators, run, run_openvino

from edgeattn.lower.part_clips import PartClips
from edgeattn.lower.passes import passes_for

STEP, ZERO = 0.05, 120
RESULT = 0.01
SHAPE = (1, 8, 6, 6)


def clipped_model(low: float | None, high: float | None, before: str = "pair") -> onnx.ModelProto:
    """A clip of a quantized image, of a convolution, of a sum, or of something in float."""
    b = Builder()
    weight = b.weight(np.random.default_rng(0).integers(-64, 65, (8, 8, 1, 1)), np.full(8, 0.004))
    source = b.pair("x", STEP, ZERO)
    if before != "pair":
        source = b.add("Conv", source, weight)
    if before == "sum":
        source = b.add("Add", source, b.pair("x", STEP, ZERO))
    source = b.add("Sigmoid", source) if before == "float" else b.pair(source, STEP, ZERO)
    bounds = [b.constant(np.float32(bound)) if bound is not None else "" for bound in (low, high)]
    return b.model({"x": SHAPE}, b.pair(b.add("Clip", source, *bounds), RESULT, 128))


def image(seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32) * 3}


@given(
    low=st.floats(-1.2, 0.0),
    width=st.floats(0.05, 1.2),
    before=st.sampled_from(["pair", "conv", "sum"]),
)
@settings(max_examples=25, deadline=None)
def test_openvino_clips_where_the_graph_says(low: float, width: float, before: str) -> None:
    model = clipped_model(low, low + width, before)
    lowered, changed = lower(model, PartClips())
    assert changed == ["part-clips"]
    expected = run(model, image())
    np.testing.assert_array_equal(run(lowered, image()), expected)
    # A rounding of the layer before may fall the other way, and moves a value by a step of its own.
    apart = np.abs(run_openvino(lowered, image()) - expected) / RESULT
    assert (apart > 1.01).mean() < 0.02


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.7), (0.0, 0.03)], ids=["levels", "less than a level"])
def test_without_the_pass_openvino_is_wrong(low: float, high: float) -> None:
    # If this fails, OpenVINO has mended it, and the pass can go.
    model = clipped_model(low, high)
    apart = np.abs(run_openvino(model, image()) - run(model, image())) / RESULT
    assert (apart > 1.01).mean() > 0.2


@pytest.mark.parametrize(
    "model",
    [
        clipped_model(0.0, None),
        clipped_model(0.0, 7.0),
        clipped_model(None, 50.0),
        clipped_model(0.1, 0.7, before="float"),
    ],
    ids=["ReLU", "a bound beyond the levels", "no bound within", "of floats"],
)
def test_clips_that_openvino_leaves_in_place_stay(model: onnx.ModelProto) -> None:
    assert lower(model, PartClips())[1] == []


def test_only_openvino_gets_it() -> None:
    model = clipped_model(-0.5, 0.7)
    assert "LeakyRelu" in operators(lower(model, *passes_for("openvino-cpu"))[0])
    for target in ("ort-cpu", "tensorrt-rtx"):
        assert "LeakyRelu" not in operators(lower(model, *passes_for(target))[0])
