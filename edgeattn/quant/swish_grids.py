"""Grids on which a hard swish is a product of integers.

``hard_swish(x) = x * clip(x + 3, 0, 6) / 6``. Where 3 is a whole number n of steps, ``x + 3`` lies on the same grid as x:
the second factor is x's own integers, clipped to n steps around the zero point, which then stands for -3
(`edgeattn.lower.integer_swish`). No value below -3 has to be told from -3 either, because the hard swish of all of them
is 0: the grid begins at -3, and steps are finer where the range went lower.
"""

from __future__ import annotations

from edgeattn.onnx_graph import Graph
from edgeattn.quant.placement import Placement
from edgeattn.quant.plan import ActivationRange, QuantPlan

__all__ = ["KNEE", "count_swish_grids", "with_swish_grids"]

KNEE = 3.0
"""Below minus this a hard swish is 0, above it is what it is given."""
_MOST_WIDENED = 1.15
"""Of a range that ends above -3: it costs a fifth of a bit at most to begin it there."""
_LEAST_STEPS = 8
"""Between -3 and 0: with fewer, making 3 a whole number of steps would widen them by more than a sixteenth."""


def with_swish_grids(plan: QuantPlan, graph: Graph, place: Placement) -> QuantPlan:
    """Return the plan with 3 as a whole number of steps wherever only hard swishes read a tensor.

    Args:
        plan: With ranges for all tensors.
        graph: Canonical fp32 graph.
        place: Which ranges are fixed or another tensor's; these stay.
    """
    activations = dict(plan.activations)
    for name in _read_by_swishes(plan, graph, place):
        activations[name] = _from_the_knee(activations[name])
    return plan if activations == plan.activations else plan.model_copy(update={"activations": activations})


def count_swish_grids(plan: QuantPlan, graph: Graph, place: Placement) -> int:
    """Return how many tensors have such a grid."""
    return sum(
        params.zero_point > 0 and abs(params.zero_point * params.scale - KNEE) < KNEE * 2.0**-22
        for params in (plan.activations[name].params("u8") for name in _read_by_swishes(plan, graph, place))
    )


def _read_by_swishes(plan: QuantPlan, graph: Graph, place: Placement) -> list[str]:
    tied = set(place.same_range) | set(place.same_range.values()) | set(place.fixed)
    return [
        name
        for name in plan.activations
        if name not in tied
        and name not in graph.output_names
        and graph.consumers.get(name)
        and all(user.op_type == "HardSwish" for user in graph.consumers[name])
    ]


def _from_the_knee(item: ActivationRange) -> ActivationRange:
    """Return the range from -3 on, up to about where it ended, in steps of which 3 is a whole number."""
    width = item.high + KNEE
    steps = round(255 * KNEE / width)
    if width > _MOST_WIDENED * (item.high - item.low) or not _LEAST_STEPS <= steps <= 255:
        return item
    high = (255 - steps) * (KNEE / steps)
    return item.model_copy(update={"low": -KNEE, "high": high})
