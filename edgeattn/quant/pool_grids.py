"""Keep the grids of means within what kernels can compute.

A mean over n values on a grid of step s is a multiple of s / n. A result whose step is far finer gains nothing, and
ONNX Runtime refuses to run a pool that multiplies its sum by 256 or more ("parameter out of computation range",
`MlasQLinearGlobalAveragePool`). Training arrives there where a channel statistic is next to constant.
"""

from __future__ import annotations

import math

from onnx import NodeProto

from edgeattn.onnx_graph import Graph, attribute
from edgeattn.quant.placement import POOLS, Placement
from edgeattn.quant.plan import PROFILES, QuantPlan, follow_ranges

__all__ = ["coarsen_pools"]

_LARGEST_RATIO = 128.0


def coarsen_pools(plan: QuantPlan, graph: Graph, place: Placement) -> QuantPlan:
    """Return the plan with no mean on a grid finer than 1/128 of the step that the mean itself has.

    Ranges grow by a power of two, so that what was exact about a grid stays.

    Args:
        plan: Complete plan.
        graph: Canonical fp32 graph that it belongs to.
        place: Which tensors have another's range.
    """
    shapes = graph.shapes()
    activations = dict(plan.activations)
    for node in graph.nodes:
        source, result = activations.get(node.input[0]), activations.get(node.output[0])
        if (
            node.op_type not in POOLS
            or source is None
            or result is None
            or node.output[0] in place.same_range
        ):
            continue
        ratio = max(
            source.params(profile).scale / result.params(profile).scale
            for profile in PROFILES
            if source.is_quantized(profile) and result.is_quantized(profile)
        ) / _values_in_mean(node, shapes)
        if ratio > _LARGEST_RATIO:
            factor = 2.0 ** math.ceil(math.log2(ratio / _LARGEST_RATIO))
            activations[node.output[0]] = result.times(factor)
    return plan.model_copy(update={"activations": follow_ranges(activations, place.same_range)})


def _values_in_mean(node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type == "AveragePool":
        return math.prod(attribute(node, "kernel_shape", [1]))
    return max(math.prod(shapes[node.input[0]]) // math.prod(shapes[node.output[0]]), 1)
