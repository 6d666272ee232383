"""Keep softmaxes out of ONNX Runtime's integer kernel where that overflows, and where it is slow.

Its ``QLinearSoftmax`` looks exponentials up in a table of float32 whose largest entry is as large as ``length`` of them
can be summed, ``FLT_MAX / (e^5 length)``, and multiplies by ``floor(1 / scale)`` before it divides by the sum. Where
the scale is finer than ``1 / (e^5 length)`` that product is infinite and the largest probabilities of a row become
the type's last integer, whatever they are. So fine a scale is what a softmax near 1 / length gets: one of high
temperature, or of scores that hardly differ. Read in ONNX Runtime's ``qlinear_softmax.cc``, and seen with 1.31.1;
1.32.0 computes them right, but an engine may be carried to an older one.

It also goes number by number where the float kernel takes vectors: 68 us for 8 x 64 x 64 scores, and 30 in float with
both conversions (Xeon with AVX-512). For fewer than some hundred numbers one kernel is faster than four, and along
another axis than the last one float scores are transposed twice.

An identity before the quantization leaves such a softmax in float; no number changes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar

from onnx import NodeProto

from edgeattn.lower.parting import PartingPass
from edgeattn.lower.patterns import dequantize_of, quantize_behind
from edgeattn.onnx_graph import Graph, attribute

__all__ = ["PartSoftmaxes", "broken_softmaxes", "is_along_last_axis"]

_WORTH_FLOAT = 1024
"""Numbers of a softmax from which on float is faster."""
_MARGIN = math.exp(5.0) * 0.98
"""Of the table's largest entry to the largest float32, less what float32 rounds."""


@dataclasses.dataclass(frozen=True)
class PartSoftmaxes(PartingPass):
    """Put an identity between softmax and quantization where the integer kernel would be wrong or slow."""

    name: str = "part-softmaxes"
    left: ClassVar[str] = "quantizes a softmax of ONNX Runtime's integer kernel"

    def found(self, graph: Graph) -> list[NodeProto]:
        """Return what quantizes such softmaxes."""
        return [
            quantize
            for node, quantize, shape, overflows in _quantized_softmaxes(graph)
            if overflows or (is_along_last_axis(node, shape) and math.prod(shape) >= _WORTH_FLOAT)
        ]


def is_along_last_axis(softmax: NodeProto, shape: tuple[int, ...]) -> bool:
    """Return whether what a softmax, since opset 13, sums to one lies together in memory."""
    return int(attribute(softmax, "axis", -1)) in (-1, len(shape) - 1)


def broken_softmaxes(graph: Graph) -> list[tuple[NodeProto, NodeProto]]:
    """Return softmaxes between Q/DQ pairs that ONNX Runtime's kernel computes wrongly, and what quantizes them."""
    return [(node, quantize) for node, quantize, _, overflows in _quantized_softmaxes(graph) if overflows]


def _quantized_softmaxes(graph: Graph) -> Iterator[tuple[NodeProto, NodeProto, tuple[int, ...], bool]]:
    """Yield what ONNX Runtime fuses to its integer kernel: softmax, quantization, shape, and whether it overflows."""
    shapes = graph.shapes()
    for node in graph.nodes:
        if node.op_type != "Softmax" or dequantize_of(graph, node.input[0]) is None:
            continue
        quantize = quantize_behind(graph, node.output[0])
        scale = graph.scalar(quantize.input[1]) if quantize is not None else None
        if quantize is None or scale is None or not scale > 0:
            continue
        shape, axis = shapes.get(node.input[0], ()), int(attribute(node, "axis", -1))
        # Without sizes the shortest length, which overflows first.
        length = shape[axis] if -len(shape) <= axis < len(shape) else 1
        yield node, quantize, shape, math.floor(1.0 / scale) > _MARGIN * max(length, 1)
