"""Keep OpenVINO from moving a quantization across a concatenation, where it cannot compile what comes out.

OpenVINO 2026.4's CPU plugin ends the process with a segmentation fault in ``compile_model`` where quantized tensors are
concatenated, quantized, and then scaled, shifted or rectified: a batch norm that has no single convolution to fold into,
as behind the two halves of `scconv`, or ``x + 3``. An activation in between that changes nothing (a leaky ReLU of slope 1)
keeps the parts apart.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from onnx import NodeProto

from edgeattn.lower.parting import PartingPass
from edgeattn.onnx_graph import Graph

__all__ = ["PartConcats"]

_ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})


@dataclasses.dataclass(frozen=True)
class PartConcats(PartingPass):
    """Put an identity between concatenation and quantization, before what OpenVINO would move."""

    name: str = "part-concats"
    left: ClassVar[str] = "quantizes a concatenation that goes into what OpenVINO moves it across"

    def found(self, graph: Graph) -> list[NodeProto]:
        """Return what quantizes such concatenations."""
        return _scaled_concats(graph)


def _scaled_concats(graph: Graph) -> list[NodeProto]:
    """Return the quantizations right behind a concatenation whose results are rectified or meet a constant."""
    found = []
    for node in graph.nodes:
        before = graph.producer.get(node.input[0])
        if node.op_type != "QuantizeLinear" or before is None or before.op_type != "Concat":
            continue
        dequantize = graph.only_consumer(node.output[0])
        reader = graph.only_consumer(dequantize.output[0]) if dequantize is not None else None
        if reader is None:
            continue
        meets_constant = reader.op_type in _ARITHMETIC and any(
            name in graph.constants for name in reader.input
        )
        if meets_constant or reader.op_type == "Relu":
            found.append(node)
    return found
