"""Which factors bring the channels before depthwise convolutions to like ranges."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from edgeattn.onnx_graph import Graph
from edgeattn.quant.calibrate import collect_channel_extent
from edgeattn.quant.channel_gates import channel_gates, with_channel_gates
from edgeattn.quant.config import PtqConfig, RangeEstimator
from edgeattn.quant.equalize import apply_channel_scales, channel_scales, find_groups
from edgeattn.quant.image_choice import Images, split_images
from edgeattn.quant.joined_progress import JoinedProgress, Progress
from edgeattn.quant.placement import Placement, place_quantizers
from edgeattn.quant.plan import ActivationRange, QuantPlan
from edgeattn.quant.ranges import range_statistics, with_ranges
from edgeattn.quant.simulation import PlanMeter
from edgeattn.quant.swish_grids import KNEE

__all__ = ["equalized_plan", "gated_if_better"]

_STRENGTH = 1.0
_IDLE_BELOW = {"HardSwish": KNEE, "Swish": 6.0}
"""Below minus this a swish is 0, or nearly so."""
_LEAST_GAIN_DB, _GOOD_DB = 2.0, 40.0
"""A gate of its own costs a network of swishes up to a tenth of its time in ONNX Runtime: what it has to gain for that, and what
is good enough without."""


def equalized_plan(
    empty: QuantPlan,
    graph: Graph,
    place: Placement,
    images: Images,
    estimator: RangeEstimator,
    config: PtqConfig,
    fixed: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> QuantPlan | None:
    """Return a plan with like ranges in all channels before depthwise convolutions; None where there are none to scale.

    Args:
        empty: What the plan begins with.
        graph: Canonical fp32 graph.
        place: Where it is quantized.
        images: Calibration batches (1, C, H, W).
        estimator: Of ranges.
        config: How ranges follow from samples.
        fixed: Weights and biases that nothing may change.
        progress: Called with (done, total) images.
    """
    groups = [group for group in find_groups(graph) if group.is_free and not group.constants & fixed]
    if not groups:
        return None
    gates = {item.result: item for item in channel_gates(graph)}
    swishes = {group.name: gates[group.tensors[-1]] for group in groups if group.tensors[-1] in gates}
    read = {group.tensors[-1] for group in groups} | {item.source for item in swishes.values()}
    seen = collect_channel_extent(graph.to_model(), sorted(read), images)
    scales, knees = {}, {}
    for group in groups:
        extent, swish = seen[group.tensors[-1]], swishes.get(group.name)
        if swish is not None:
            # A swish tells apart what it reads below 0 as well, down to where it becomes 0.
            knee = np.minimum(seen[swish.source], np.float32(_IDLE_BELOW[swish.kind]))
            extent = np.maximum(extent, knee)
        factors = channel_scales(extent, _STRENGTH)
        scales[group.name] = factors.tolist()
        if swish is not None:
            knees[swish.source] = -float((knee / factors).max())
    scaled = Graph(graph.to_model())
    apply_channel_scales(scaled, scales)
    statistics = range_statistics(scaled, place, images, (estimator,), progress)
    plan = with_ranges(
        empty.model_copy(update={"channel_scales": scales}), scaled, place, statistics, estimator, config
    )
    cut = {
        name: _without_idle(plan.activations[name], low)
        for name, low in knees.items()
        if name in plan.activations
    }
    return plan.model_copy(update={"activations": plan.activations | cut})


def _without_idle(item: ActivationRange, low: float) -> ActivationRange:
    """Return a range that ends where the last of the channels' swishes has become 0."""
    limit = min(item.limit, max(-low, item.high))
    return item.model_copy(update={"low": max(item.low, low), "limit": limit})


def gated_if_better(
    model: ModelProto, images: Images, config: PtqConfig, progress: Progress | None = None
) -> ModelProto | None:
    """Return the model with gates by channel in its swishes, where that brings INT8 nearer to the float network.

    Args:
        model: Canonical fp32 ONNX, one input, batch 1.
        images: Calibration batches (1, C, H, W).
        config: What the plan will be made with.
        progress: Called with (done, total) where there are swishes to try.
    """
    gated = with_channel_gates(model) if config.equalization else None
    if gated is None:
        return None
    counter = JoinedProgress(progress)
    plain_db = _reached_db(model, images, config, counter)
    gated_db = _reached_db(gated, images, config, counter) if plain_db < _GOOD_DB else plain_db
    counter.finish()
    return gated if gated_db > plain_db + _LEAST_GAIN_DB else None


def _reached_db(model: ModelProto, images: Images, config: PtqConfig, counter: JoinedProgress) -> float:
    """Return what ranges alone reach, equalized or not, whichever is better: the mean of both profiles."""
    held_out, _ = split_images(images)
    estimator = config.estimators[0]
    graph, place = Graph(model), place_quantizers(model)
    empty = QuantPlan(method="ptq", activations={}, weights={})
    statistics = range_statistics(graph, place, images, (estimator,), counter.part(0.25))
    plans = [
        with_ranges(empty, graph, place, statistics, estimator, config),
        equalized_plan(empty, graph, place, images, estimator, config, progress=counter.part(0.25)),
    ]
    meter = PlanMeter(graph, place, held_out)
    steps = [meter.step("", plan, 0.0) for plan in plans if plan is not None]
    return max((step.sqnr_db_u8 + step.sqnr_db_s8) / 2 for step in steps)
