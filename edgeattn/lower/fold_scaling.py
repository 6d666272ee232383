"""Fold the product with a positive scalar into the scale of the quantization behind it.

``Q(k * x, s)`` is ``Q(x, s / k)``. The DequantizeLinear keeps the scale `s`, so the product costs nothing,
and the operation in front meets its QuantizeLinear directly, as integer kernels want it. Only the rounding
of ``s / k`` to float32 differs: at most one step where a value lies right between two.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import NodeProto

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import quantize_behind
from edgeattn.onnx_graph import Graph

__all__ = ["FoldScaling"]


@dataclasses.dataclass(frozen=True)
class FoldScaling(EveryGraph):
    """Fold scalar products in front of QuantizeLinear."""

    name: str = "fold-scaling"

    def __call__(self, graph: Graph) -> bool:
        """Fold every product that only a QuantizeLinear reads."""
        changed = False
        # A product that is gone may have kept the one before it from its quantization.
        while found := next(filter(None, (_scaled(graph, node) for node in graph.nodes)), None):
            product, source, factor, quantize = found
            scale = graph.constants[quantize.input[1]]
            name = graph.fresh_name(f"{quantize.output[0]}.unscaled")
            graph.constants[name] = (scale.astype(np.float64) / factor).astype(np.float32)
            quantize.input[0], quantize.input[1] = source, name
            graph.replace(product)
            changed = True
        return changed

    def ensures(self, graph: Graph) -> str:
        """Check that no such product is left."""
        left = [node.name for node in graph.nodes if _scaled(graph, node) is not None]
        return f"{left[0]!r} still multiplies by a scalar" if left else ""


def _scaled(graph: Graph, node: NodeProto) -> tuple[NodeProto, str, float, NodeProto] | None:
    if node.op_type != "Mul":
        return None
    quantize = quantize_behind(graph, node.output[0])
    if quantize is None or graph.constant(quantize.input[1]) is None:
        return None
    for source, other in ((0, 1), (1, 0)):
        factor = graph.scalar(node.input[other])
        if factor is not None and factor > 0 and graph.constant(node.input[source]) is None:
            # A scalar of higher rank than the map would also change its shape.
            if graph.constants[node.input[other]].ndim > 1:
                return None
            return node, node.input[source], factor, quantize
    return None
