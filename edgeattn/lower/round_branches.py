"""Make OpenVINO round the convolution's branch of a residual sum, where that makes results exact.

OpenVINO's CPU plugin computes convolution, quantization, sum and quantization in one kernel, and leaves the first
rounding out if that quantization is the first thing behind the convolution. The sum is a little nearer to the float
network's then, but no other runtime gets the same integers. An activation in between that changes nothing (a leaky
ReLU of slope 1) makes the quantization the second thing, and it stays. Graphs whose scales are powers of two
(`edgeattn.quant.exact_grids`) gain by it; on maps of other graphs other roundings differ anyway. Sums of pooled vectors
(the two branches of CBAM's gate) are rounded in all graphs: every value there rules a whole channel, and costs nothing.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from onnx import NodeProto

from edgeattn.lower.parting import PartingPass
from edgeattn.lower.patterns import dequantize_of, power_of_two_step
from edgeattn.onnx_graph import Graph

__all__ = ["RoundBranches"]


@dataclasses.dataclass(frozen=True)
class RoundBranches(PartingPass):
    """Put an identity between convolution and quantization, before sums with power-of-two scales or of single pixels."""

    name: str = "round-branches"
    left: ClassVar[str] = "would not be rounded"
    suffix: ClassVar[str] = "rounded"

    def found(self, graph: Graph) -> list[NodeProto]:
        """Return what quantizes such branches."""
        return _branches(graph)


def _branches(graph: Graph) -> list[NodeProto]:
    """Return the quantizations right behind a convolution whose results are summed on exact grids, or are vectors."""
    found = []
    sums = [node for node in graph.nodes if node.op_type == "Add"]
    shapes = graph.shapes() if sums else {}
    for node in sums:
        sources = [dequantize_of(graph, name) for name in node.input]
        shape = shapes.get(node.output[0], ())
        is_vector = len(shape) == 4 and shape[2] * shape[3] == 1
        if not is_vector and any(power_of_two_step(graph, source) is None for source in sources):
            continue
        for source in sources:
            quantize = graph.producer.get(source.input[0]) if source is not None else None
            if quantize is None or quantize.op_type != "QuantizeLinear":
                continue
            before = graph.producer.get(quantize.input[0])
            if before is not None and before.op_type == "Conv":
                found.append(quantize)
    return found
