"""Keep interpolation out of integers, which ONNX Runtime before 1.27 cuts or refuses.

Between Q/DQ pairs of one grid it leaves the pairs out and resizes the integers themselves. What lies between two of them it
cut to the lower one: half a step on the average, always the same way, where the graph rounds. Cubic interpolation has no
kernel for integers there and ends the first inference (both seen with 1.23.2 and 1.24.1; 1.27.0 does either right). The
newest ONNX Runtime for Python 3.10 is 1.23.2, and a file may be carried to one.

An identity before the quantization leaves such a resize in float, and no number changes. With 1.31.1 that is slower: networks
of three pointwise convolutions and two resizes took 1.13 times as long. So it is for old runtimes and for files that travel.
The nearest value of a map is one of its own integers, and stays there.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from onnx import NodeProto

from edgeattn.lower.parting import PartingPass
from edgeattn.lower.patterns import dequantize_of, quantize_behind
from edgeattn.onnx_graph import Graph, attribute

__all__ = ["INTERPOLATES_INTEGERS", "PartResizes", "interpolated_integers"]

INTERPOLATES_INTEGERS = (1, 27)
"""The first version of ONNX Runtime that is known to do it right."""


@dataclasses.dataclass(frozen=True)
class PartResizes(PartingPass):
    """Put an identity between an interpolating resize and its quantization."""

    name: str = "part-resizes"
    left: ClassVar[str] = "quantizes what ONNX Runtime before 1.27 interpolates in integers"

    def found(self, graph: Graph) -> list[NodeProto]:
        """Return what quantizes such resizes."""
        return [quantize for _, quantize in interpolated_integers(graph)]


def interpolated_integers(graph: Graph) -> list[tuple[NodeProto, NodeProto]]:
    """Return interpolating resizes between Q/DQ pairs, and what quantizes them."""
    return [
        (node, quantize)
        for node in graph.nodes
        if node.op_type == "Resize" and attribute(node, "mode", "nearest") != "nearest"
        if dequantize_of(graph, node.input[0]) is not None
        if (quantize := quantize_behind(graph, node.output[0])) is not None
    ]
