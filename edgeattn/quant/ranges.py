"""The ranges and weight scales of a plan, from statistics of a graph's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeattn.onnx_graph import Graph
from edgeattn.quant.calibrate import (
    TensorStatistics,
    collect_statistics,
    estimate_limit,
    estimate_range,
    weight_scales,
)
from edgeattn.quant.config import PtqConfig, RangeEstimator
from edgeattn.quant.folding import can_fold_zero_point
from edgeattn.quant.joined_progress import Progress
from edgeattn.quant.placement import Placement
from edgeattn.quant.plan import PROFILES, ActivationRange, QuantPlan

__all__ = ["FINER", "planned_activations", "planned_weights", "range_statistics", "with_ranges"]


FINER = 0.9
"""How much finer than the symmetric grid an affine one has to be for its zero point to be folded."""
_LARGEST_BIAS = 2**29
"""In steps of the accumulator: a quarter of what 32 bits hold, for products and for ranges that get shorter later."""


def range_statistics(
    graph: Graph,
    place: Placement,
    images: Sequence[NDArray[np.float32]],
    estimators: Sequence[RangeEstimator],
    progress: Progress | None,
) -> dict[str, TensorStatistics]:
    """Return what some estimators need to know of every planned tensor."""
    histograms = any(estimator in ("mse", "percentile") for estimator in estimators)
    return collect_statistics(graph.to_model(), place.activations, images, progress, histograms=histograms)


def with_ranges(
    plan: QuantPlan,
    graph: Graph,
    place: Placement,
    statistics: Mapping[str, TensorStatistics],
    estimator: RangeEstimator,
    config: PtqConfig,
) -> QuantPlan:
    """Return the plan with ranges and weight scales that fit the constants of `graph`."""
    found: dict[str, tuple[float, float, float]] = {}
    for name in place.activations:
        if name not in place.fixed:
            low, high = estimate_range(statistics[name], estimator, config.percentile)
            found[name] = low, high, estimate_limit(statistics[name], estimator, config.percentile)
    activations = planned_activations(graph, place, found)
    weights = planned_weights(graph, place, activations)
    return plan.model_copy(update={"activations": activations, "weights": weights})


def planned_activations(
    graph: Graph, place: Placement, found: Mapping[str, tuple[float, float, float]]
) -> dict[str, ActivationRange]:
    """Return the range of every planned tensor from (low, high, limit) of those that are not fixed."""
    tied = set(place.same_range.values())
    activations: dict[str, ActivationRange] = {}
    for name in place.activations:
        if name in place.fixed:
            low, high = place.fixed[name]
            # A grid of 256 levels around 0 has one more below it than above.
            limit = max(-low * 127 / 128, high)
        else:
            low, high, limit = found[name]
        activations[name] = ActivationRange(
            low=low,
            high=high,
            limit=limit,
            addend=name in place.addends,
            folds_zero_point=name not in tied and _gains_by_folding(graph, name, low, high, limit),
        )
    for name, source in place.same_range.items():
        activations[name] = activations[source].model_copy(update={"addend": False})
    return activations


def _gains_by_folding(graph: Graph, name: str, low: float, high: float, limit: float) -> bool:
    """Whether the affine grid is clearly finer, and biases can take its zero point."""
    return (high - low) / 255 < FINER * limit / 127 and can_fold_zero_point(graph, name)


def planned_weights(
    adjusted: Graph, place: Placement, activations: Mapping[str, ActivationRange]
) -> dict[str, list[float]]:
    """Return the scales of every planned weight, with room for the biases beside them."""
    scales = {
        name: weight_scales(adjusted.constants[name], axis).tolist() for name, axis in place.weights.items()
    }
    return _with_room_for_biases(adjusted, activations, scales)


def _with_room_for_biases(
    graph: Graph, activations: Mapping[str, ActivationRange], weights: Mapping[str, list[float]]
) -> dict[str, list[float]]:
    """Widen scales so short that biases do not fit the accumulator, of weights that hardly count beside these.

    Where weights are nearly zero, or a gate's squeezed channels never fire, an accumulator's step is 1e-11 or so. An
    ordinary bias passes 32 bits in such steps, and ONNX Runtime adds what is left of it.
    """
    widened = dict(weights)
    for node in graph.nodes:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
            continue
        source, scales = activations.get(node.input[0]), weights.get(node.input[1])
        bias = graph.constant(node.input[2])
        if source is None or scales is None or bias is None or bias.size != len(scales):
            continue
        step = min(source.params(profile).scale for profile in PROFILES)
        least = np.abs(bias.reshape(-1).astype(np.float64)) / (step * _LARGEST_BIAS)
        pairs = zip(scales, least.tolist(), strict=True)
        widened[node.input[1]] = [max(scale, floor) for scale, floor in pairs]
    return widened
