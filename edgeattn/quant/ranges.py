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
from edgeattn.quant.plan import ActivationRange, QuantPlan

__all__ = ["FINER", "planned_activations", "planned_weights", "range_statistics", "with_ranges"]


FINER = 0.9
"""How much finer than the symmetric grid an affine one has to be for its zero point to be folded."""


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
    return plan.model_copy(
        update={
            "activations": planned_activations(graph, place, found),
            "weights": planned_weights(graph, place),
        }
    )


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


def planned_weights(adjusted: Graph, place: Placement) -> dict[str, list[float]]:
    """Return the scales of every planned weight."""
    return {
        name: weight_scales(adjusted.constants[name], axis).tolist() for name, axis in place.weights.items()
    }
