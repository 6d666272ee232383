"""Images are quantized to the pixels that they came from: no value is off, whatever mean, deviation and border."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from quant_networks import SIZE, Builder, run

from edgeattn.export.qdq import emit_qdq
from edgeattn.onnx_graph import Graph, attribute
from edgeattn.quant.config import RANGES_ONLY, PtqConfig
from edgeattn.quant.exact_grids import count_exact
from edgeattn.quant.pixel_input import PixelGrid, find_pixel_grid, pixel_model, with_pixel_input
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import PROFILES
from edgeattn.quant.ptq import make_plan

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
means = st.tuples(*[st.floats(0, 1)] * 3)
deviations = st.tuples(*[st.floats(0.05, 1.0)] * 3)


def pixels(count: int = 4, seed: int = 0, low: int = 0, high: int = 255) -> NDArray[np.uint8]:
    """Images that show their darkest and their brightest pixel."""
    found = np.random.default_rng(seed).integers(low, high, (count, 1, 3, SIZE, SIZE), endpoint=True)
    found[..., 0, 0], found[..., 0, 1] = low, high
    # 64 pixels a channel: every one of 256 levels would be luck.
    found[..., 1, :], found[..., 2, :] = low + np.arange(SIZE), high - np.arange(SIZE)
    return found.astype(np.uint8)


def normalized(images: NDArray[np.uint8], mean: Any = MEAN, std: Any = STD) -> list[NDArray[np.float32]]:
    shape = (1, 3, 1, 1)
    scaled = images.astype(np.float32) / np.float32(255) - np.asarray(mean, np.float32).reshape(shape)
    return list((scaled / np.asarray(std, np.float32).reshape(shape)).astype(np.float32))


def network(pads: tuple[int, ...] = (1, 1, 1, 1), *, bias: bool = True, seed: int = 0) -> onnx.ModelProto:
    builder = Builder(seed)
    hidden = builder.relu6(builder.conv("input", "first", 3, 8, kernel=3), "first_relu")
    builder.node("GlobalAveragePool", [hidden], "pooled")
    builder.constant("head.weight", builder.random.normal(size=(5, 8)))
    builder.constant("head.bias", builder.random.normal(size=5))
    builder.node("Flatten", ["pooled"], "flat")
    builder.node("Gemm", ["flat", "head.weight", "head.bias"], "logits", transB=1)
    model = builder.model("logits", (1, 5))
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    next(item for item in conv.attribute if item.name == "pads").ints[:] = pads
    if not bias:
        del conv.input[2:]
    return Graph(model).to_model()


@given(mean=means, std=deviations)
@settings(max_examples=40)
def test_the_grid_of_any_mean_and_deviation_is_found(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    grid = find_pixel_grid(normalized(pixels(), mean, std))
    assert grid is not None
    np.testing.assert_allclose(grid.steps, 1 / (255 * np.asarray(std)), rtol=1e-4)
    np.testing.assert_allclose(grid.lowest, -np.asarray(mean) / std, rtol=1e-4, atol=1e-4)


def test_values_between_pixels_have_no_grid() -> None:
    images = normalized(pixels())
    assert find_pixel_grid(images) is not None
    images[2] = images[2] + np.float32(0.3 / (255 * STD[0])) * (np.arange(SIZE) == 3)
    assert find_pixel_grid(images) is None


@pytest.mark.parametrize(
    "what", ["noise", "few levels", "one value", "not a number", "no image", "zero outside"]
)
def test_no_grid_where_images_show_none(what: str) -> None:
    images = {
        "noise": list(np.random.default_rng(0).normal(size=(4, 1, 3, SIZE, SIZE)).astype(np.float32)),
        "few levels": normalized(pixels() // 2),
        "one value": [np.ones((1, 3, SIZE, SIZE), np.float32)],
        "not a number": [np.full((1, 3, SIZE, SIZE), np.nan, np.float32)],
        "no image": [],
        # A convolution pads with zeros, which no pixel stands for.
        "zero outside": [image + np.float32(9) for image in normalized(pixels())],
    }[what]
    assert find_pixel_grid(images) is None


def test_levels_that_no_image_shows_are_kept_at_both_ends() -> None:
    grid = find_pixel_grid(normalized(pixels(low=8, high=240)))
    assert grid is not None
    lowest = (grid.lowest - (-MEAN / STD)) * 255 * STD
    np.testing.assert_allclose(lowest, 8 - (255 - 232) // 2, atol=1e-2)


@given(
    mean=means,
    std=deviations,
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30)
def test_the_function_stays_at_every_border(
    mean: tuple[float, ...], std: tuple[float, ...], pads: tuple[int, ...], bias: bool, seed: int
) -> None:
    images, model = normalized(pixels(), mean, std), network(pads, bias=bias, seed=seed)
    changed = pixel_model(model, images)
    assert changed is not None
    for image in images:
        before = run(Graph(model).to_model(["first"]), image, "first")[0]
        after = run(Graph(changed).to_model(["first"]), image, "first")[0]
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=2e-4 * np.abs(before).max())


def test_a_border_of_pixel_128_would_be_found() -> None:
    images, model = normalized(pixels()), network()
    changed = pixel_model(model, images)
    assert changed is not None
    pad = next(node for node in changed.graph.node if node.op_type == "Pad")
    conv = next(node for node in changed.graph.node if node.op_type == "Conv")
    conv.attribute.append(onnx.helper.make_attribute("pads", [1, 1, 1, 1]))
    for node in changed.graph.node:
        node.input[:] = ["input" if name == pad.output[0] else name for name in node.input]
    changed.graph.node.remove(pad)
    before = run(Graph(model).to_model(["first"]), images[0], "first")[0]
    after = run(Graph(changed).to_model(["first"]), images[0], "first")[0]
    inner = (..., slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(after[inner], before[inner], rtol=1e-3, atol=1e-3)
    assert np.abs(after - before).max() > 0.05


@pytest.mark.parametrize("profile", PROFILES)
@given(mean=means, std=deviations, seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_integers_are_the_pixels(
    profile: Any, mean: tuple[float, ...], std: tuple[float, ...], seed: int
) -> None:
    shown = pixels(seed=seed)
    images = normalized(shown, mean, std)
    changed = pixel_model(network((0, 0, 0, 0)), images)
    assert changed is not None
    plan = make_plan(changed, images, RANGES_ONLY)
    quantized, name = emit_qdq(changed, plan, profile), "input.pixels.dequantized"
    for image, wanted in zip(images, shown, strict=True):
        values = run(Graph(quantized).to_model([name]), image, name)[0]
        steps = values / plan.activations["input.pixels"].params(profile).scale
        assert np.array_equal(steps + 128, wanted)


def test_quantization_loses_nothing_of_the_image_and_exact_grids_take_it() -> None:
    images = normalized(pixels(8))
    changed = pixel_model(network(), images)
    assert changed is not None
    plan = make_plan(changed, images, PtqConfig(nncf=False, tuning_steps=0, exact=True), plain=network())
    params = plan.activations["input.pixels"].params("u8"), plan.activations["input.pixels"].params("s8")
    assert [item.zero_point for item in params] == [128, 0]
    assert params[0].scale == params[1].scale == 2.0**-6
    assert count_exact(plan)[0] == count_exact(plan)[1]
    # The ladder begins with what ranges alone reach on the image as it is, and tells what pixels gain.
    assert [step.step for step in plan.ladder][:2] == ["ranges: mean_minmax", "the image in pixels"]
    assert "input" not in plan.activations


def test_only_the_convolution_behind_the_pixels_is_integer() -> None:
    model = pixel_model(network(), normalized(pixels()))
    assert model is not None
    place = place_quantizers(model)
    assert place.activations[0] == "input.pixels"
    assert place.fixed == {"input.pixels": (-2.0, 127 / 64)}
    assert not {"input", "input.padded", "input.scaled", "input.shifted"} & set(place.activations)


def grid() -> PixelGrid:
    return PixelGrid(1 / (255 * STD), -MEAN / STD)


def _two_readers(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Relu", ["input"], ["other"], "other"))


def _groups(model: onnx.ModelProto) -> None:
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    next(item for item in conv.attribute if item.name == "group").i = 3


def _automatic_pads(model: onnx.ModelProto) -> None:
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    kept = [item for item in conv.attribute if item.name != "pads"]
    del conv.attribute[:]
    conv.attribute.extend([*kept, onnx.helper.make_attribute("auto_pad", "SAME_UPPER")])


def _activation_first(model: onnx.ModelProto) -> None:
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.input[0] = "rectified"
    model.graph.node.insert(0, onnx.helper.make_node("Relu", ["input"], ["rectified"], "rectified"))


@pytest.mark.parametrize("change", [_two_readers, _groups, _automatic_pads, _activation_first])
def test_a_graph_that_cannot_read_pixels_stays_as_it_is(change: Any) -> None:
    model = network()
    change(model)
    graph = Graph(model)
    before = graph.to_model().SerializeToString()
    assert not with_pixel_input(graph, grid())
    assert graph.to_model().SerializeToString() == before


def test_pads_move_out_of_the_convolution() -> None:
    graph = Graph(network((2, 0, 1, 1)))
    assert with_pixel_input(graph, grid())
    conv = next(node for node in graph.nodes if node.op_type == "Conv")
    pad = next(node for node in graph.nodes if node.op_type == "Pad")
    assert not any(attribute(conv, "pads", [0]))
    assert graph.constants[pad.input[1]].tolist() == [0, 0, 2, 0, 0, 0, 1, 1]
