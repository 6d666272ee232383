"""Keep softmaxes out of ONNX Runtime's integer kernel where that overflows.

Its ``QLinearSoftmax`` looks exponentials up in a table of float32 whose largest entry is as large as ``length`` of them
can be summed, ``FLT_MAX / (e^5 length)``, and multiplies by ``floor(1 / scale)`` before it divides by the sum. Where
the scale is finer than ``1 / (e^5 length)`` that product is infinite and the largest probabilities of a row become
the type's last integer, whatever they are. So fine a scale is what a softmax near 1 / length gets: one of high
temperature, or of scores that hardly differ. Read in ONNX Runtime's
``qlinear_softmax.cc``, and seen with 1.31.1.

An identity before the quantization leaves such a softmax in float; no number changes.
"""

from __future__ import annotations

import dataclasses
import math

from onnx import NodeProto

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import dequantize_of, put_identity_before, quantize_behind
from edgeattn.onnx_graph import Graph, attribute

__all__ = ["PartSoftmaxes", "broken_softmaxes"]

_MARGIN = math.exp(5.0) * 0.98
"""Of the table's largest entry to the largest float32, less what float32 rounds."""


@dataclasses.dataclass(frozen=True)
class PartSoftmaxes(EveryGraph):
    """Put an identity between softmax and quantization where the integer kernel would be wrong."""

    name: str = "part-softmaxes"

    def __call__(self, graph: Graph) -> bool:
        """Insert the identities."""
        found = broken_softmaxes(graph)
        for _, quantize in found:
            put_identity_before(graph, quantize, "parted")
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that no such softmax is left."""
        left = broken_softmaxes(graph)
        return f"{left[0][0].name!r} overflows in ONNX Runtime's integer softmax" if left else ""


def broken_softmaxes(graph: Graph) -> list[tuple[NodeProto, NodeProto]]:
    """Return softmaxes between Q/DQ pairs that ONNX Runtime's kernel computes wrongly, and what quantizes them."""
    shapes = graph.shapes()
    found = []
    for node in graph.nodes:
        if node.op_type != "Softmax" or dequantize_of(graph, node.input[0]) is None:
            continue
        quantize = quantize_behind(graph, node.output[0])
        if quantize is not None and _is_wrong(graph, node, quantize, shapes.get(node.input[0], ())):
            found.append((node, quantize))
    return found


def _is_wrong(graph: Graph, node: NodeProto, quantize: NodeProto, shape: tuple[int, ...]) -> bool:
    scale = graph.scalar(quantize.input[1])
    if scale is None or not scale > 0:
        return False
    # Without sizes the shortest length, which overflows first.
    length = shape[int(attribute(node, "axis", -1))] if shape else 1
    return math.floor(1.0 / scale) > _MARGIN * max(length, 1)
