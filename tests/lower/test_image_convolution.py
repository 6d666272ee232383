"""The way back to an image's pixels is one convolution in ONNX Runtime, with the integers that it had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lowering_graphs import Builder, lower, operators, operators_after_optimization, run

from edgeattn.lower.fill_channels import FillChannels
from edgeattn.lower.image_convolution import ImageConvolution

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
STEP = 2.0**-6


def image_model(
    pads: tuple[int, ...] = (1, 1, 1, 1), *, value: float = 0.0, scalar: bool = False, outputs: int = 16
) -> onnx.ModelProto:
    rng, b = np.random.default_rng(5), Builder()
    source = "x"
    if any(pads):
        top, left, bottom, right = pads
        amounts = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
        source = b.add("Pad", source, b.constant(amounts), b.constant(np.float32(value)))
    factor = (STEP * 255 * STD).astype(np.float32).reshape(1, 3, 1, 1)
    shift = ((255 * MEAN - 128) * STEP).astype(np.float32).reshape(1, 3, 1, 1)
    scaled = b.add("Mul", source, b.constant(factor[0, 0, 0, 0] if scalar else factor))
    pixels = b.pair(b.add("Add", scaled, b.constant(shift)), STEP, 128)
    weight = b.weight(rng.integers(-64, 65, (outputs, 3, 3, 3)), np.full(outputs, 2.0**-7))
    return b.model({"x": (1, 3, 9, 8)}, b.pair(b.add("Conv", pixels, weight, strides=[2, 2]), 0.5, 128))


def photograph(seed: int) -> dict[str, np.ndarray]:
    shown = np.random.default_rng(seed).integers(0, 256, (1, 3, 9, 8)).astype(np.float32)
    shape = (1, 3, 1, 1)
    normalized = (shown / np.float32(255) - MEAN.reshape(shape).astype(np.float32)) / STD.reshape(shape)
    return {"x": normalized.astype(np.float32)}


@given(pads=st.tuples(*[st.integers(0, 2)] * 4), seed=st.integers(0, 1000))
def test_no_bit_of_an_image_of_pixels_changes(pads: tuple[int, ...], seed: int) -> None:
    model = image_model(pads)
    lowered, changed = lower(model, ImageConvolution(), FillChannels())
    assert changed == ["image-convolution", "fill-channels"]
    assert not {"Mul", "Add"} & set(operators(lowered))
    # What is left to pad is the fourth channel.
    assert operators(lowered).count("Pad") == 1
    for optimized in (False, True):
        np.testing.assert_array_equal(
            run(lowered, photograph(seed), optimized=optimized),
            run(model, photograph(seed), optimized=optimized),
        )


def test_a_border_of_another_value_would_be_found() -> None:
    model = image_model()
    lowered, _ = lower(model, ImageConvolution())
    conv = next(node for node in lowered.graph.node if node.op_type == "Conv")
    bias = next(item for item in lowered.graph.initializer if item.name == conv.input[2])
    bias.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(STEP), bias.name)
    )
    assert not np.array_equal(run(lowered, photograph(0)), run(model, photograph(0)))


@pytest.mark.parametrize("change", [{"value": 1.0}, {"scalar": True}])
def test_other_prefixes_are_left_alone(change: dict[str, object]) -> None:
    assert lower(image_model(**change), ImageConvolution())[1] == []  # type: ignore[arg-type]


def test_the_convolution_of_pixels_stays_an_integer_kernel(tmp_path: Path) -> None:
    lowered, _ = lower(image_model(), ImageConvolution(), FillChannels())
    found = operators_after_optimization(lowered, tmp_path)
    assert found.count("QLinearConv") == 1
    assert found.count("Conv") == 1
