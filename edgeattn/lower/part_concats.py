"""Keep OpenVINO from fusing the scaling of joined convolutions, which it cannot compile.

OpenVINO 2026.4's CPU plugin ends the process with a segmentation fault in ``compile_model`` where the results of INT8
convolutions are concatenated, quantized, and then scaled by channel: a batch norm that has no single convolution to
fold into, as behind the two halves of `scconv`. An activation in between that changes nothing (a leaky ReLU of slope
1) keeps the parts apart.
"""

from __future__ import annotations

import dataclasses

from onnx import NodeProto

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import put_identity_before
from edgeattn.onnx_graph import Graph

__all__ = ["PartConcats"]


@dataclasses.dataclass(frozen=True)
class PartConcats(EveryGraph):
    """Put an identity between concatenation and quantization, before scaling by channel."""

    name: str = "part-concats"

    def __call__(self, graph: Graph) -> bool:
        """Insert the identities."""
        found = _scaled_concats(graph)
        for quantize in found:
            put_identity_before(graph, quantize, "parted")
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that no such concatenation is left."""
        left = _scaled_concats(graph)
        return f"{left[0].name!r} quantizes a concatenation that is scaled" if left else ""


def _scaled_concats(graph: Graph) -> list[NodeProto]:
    """Return the quantizations right behind a concatenation whose results are multiplied channel by channel."""
    found = []
    for node in graph.nodes:
        before = graph.producer.get(node.input[0])
        if node.op_type != "QuantizeLinear" or before is None or before.op_type != "Concat":
            continue
        dequantize = graph.only_consumer(node.output[0])
        product = graph.only_consumer(dequantize.output[0]) if dequantize is not None else None
        if product is None or product.op_type != "Mul":
            continue
        if any(name in graph.constants and graph.constants[name].size > 1 for name in product.input):
            found.append(node)
    return found
