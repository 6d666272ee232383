"""Equalization changes constants, never the function."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_networks import inverted_residual, pictures, run

from edgeattn.errors import ModelError
from edgeattn.onnx_graph import Graph
from edgeattn.quant.apply import apply_plan_constants
from edgeattn.quant.equalize import (
    LARGEST_GAIN,
    apply_channel_scales,
    channel_scales,
    find_groups,
    scale_clips,
)
from edgeattn.quant.plan import QuantPlan


def extents(model: object, tensor: str, images: list[np.ndarray]) -> np.ndarray:
    graph = Graph(model)  # type: ignore[arg-type]
    values = [run(graph.to_model([tensor]), image, tensor)[0] for image in images]
    return np.max([np.abs(value).max(axis=(0, 2, 3)) for value in values], axis=0)


@given(seed=st.integers(0, 10_000), strength=st.floats(0, 1))
@settings(max_examples=15)
def test_float_function_is_unchanged(seed: int, strength: float) -> None:
    model, images = inverted_residual(seed), pictures(3)
    graph = Graph(model)
    scales = {
        group.name: channel_scales(extents(model, group.tensors[-1], images), strength).tolist()
        for group in find_groups(graph)
        if group.is_free
    }
    assert scales
    apply_channel_scales(graph, scales)
    for image in images:
        np.testing.assert_allclose(
            run(graph.to_model(), image)[0], run(model, image)[0], rtol=1e-4, atol=1e-4
        )


def test_full_strength_gives_all_channels_one_range() -> None:
    model, images = inverted_residual(), pictures(6)
    group = next(group for group in find_groups(Graph(model)) if group.is_free)
    before = extents(model, group.tensors[-1], images)
    graph = Graph(model)
    apply_channel_scales(graph, {group.name: channel_scales(before, 1.0).tolist()})
    after = extents(graph.to_model(), group.tensors[-1], images)
    live = before > before.max() / LARGEST_GAIN
    np.testing.assert_allclose(after[live], before.max(), rtol=1e-4)


def test_only_tensors_before_depthwise_convolutions_are_free() -> None:
    free = {
        name for group in find_groups(Graph(inverted_residual())) if group.is_free for name in group.tensors
    }
    assert free == {"expand", "expand_act"}


def test_a_residual_stream_is_one_group() -> None:
    groups = find_groups(Graph(inverted_residual()))
    stream = next(group for group in groups if "sum" in group.tensors)
    assert {"stem", "stem_act", "project", "sum"} <= set(stream.tensors)
    assert {weight for weight, _ in stream.writers} == {"stem.weight", "project.weight"}
    assert dict(stream.readers) == {"expand.weight": False, "last.weight": False}


def test_channels_that_are_always_zero_keep_finite_scales() -> None:
    scales = channel_scales(np.zeros(4, np.float32), 1.0)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    assert channel_scales(np.asarray([0, 1], np.float32), 1.0).tolist() == [1 / LARGEST_GAIN, 1.0]


@pytest.mark.parametrize(
    "change",
    [
        {"channel_scales": {"nowhere": [1.0]}},
        {"channel_scales": {"expand": [1.0]}},
        {"bias_shift": {"u8": {"x": [0.0]}}},
        {"bias_shift": {"u8": {"stem.bias": [0.0]}}},
    ],
)
def test_a_plan_of_another_graph_is_refused(change: dict[str, object]) -> None:
    plan = QuantPlan(method="ptq", activations={}, weights={}, **change)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="calibrate"):
        apply_plan_constants(Graph(inverted_residual()), plan, "u8")


def test_clips_follow_channels_that_shrink() -> None:
    """Exact grids divide by more than 1; a clip that stayed at 6 would let through what it had cut."""
    model, images = inverted_residual(2), [4 * image for image in pictures(3)]
    graph = Graph(model)
    scales = {group.name: [1.7] * len(graph.constants[group.writers[0][0]]) for group in find_groups(graph)}
    apply_channel_scales(graph, scales)
    wanted = [run(model, image)[0] for image in images]
    unclipped = [run(graph.to_model(), image)[0] for image in images]
    assert max(np.abs(a - b).max() for a, b in zip(wanted, unclipped, strict=True)) > 0.1
    scale_clips(graph, scales)
    for image, expected in zip(images, wanted, strict=True):
        np.testing.assert_allclose(run(graph.to_model(), image)[0], expected, rtol=1e-4, atol=1e-4)
