"""Keep ONNX Runtime from adding in integers where that would round another way on ARM.

ONNX Runtime computes a quantized Add in one kernel. The kernel for x86 rounds as the operator says, halves to even;
the one for ARM works in fixed point and rounds halves away from zero. On scales that are powers of two
(`edgeattn.quant.exact_grids`) up to every second sum is such a half, so most integers behind a few residual sums
would be others on ARM. A Sum of two is no quantized kernel anywhere: both processors dequantize, add and quantize,
exact in float32 on such scales, and every kernel for QuantizeLinear rounds halves to even. On x86 that costs
MobileNetV2 at 224 another 5 % of its time for the same integers: only ARM gets it, and files that may be carried there.

On other scales a sum is hardly ever half a step, and the integer kernel stays.
"""

from __future__ import annotations

import dataclasses

from onnx import NodeProto

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import dequantize_of, power_of_two_step, quantize_behind
from edgeattn.onnx_graph import Graph

__all__ = ["FloatSums"]


@dataclasses.dataclass(frozen=True)
class FloatSums(EveryGraph):
    """Spell Add as Sum where it joins tensors on exact grids and its result can be half a step."""

    name: str = "float-sums"

    def __call__(self, graph: Graph) -> bool:
        """Rename the operators."""
        found = _sums(graph)
        for node in found:
            node.op_type = "Sum"
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that no such sum is left."""
        left = _sums(graph)
        return f"{left[0].name!r} would be added in fixed point on ARM" if left else ""


def _sums(graph: Graph) -> list[NodeProto]:
    """Return the Adds between exact grids whose exact result may lie between two steps."""
    found = []
    for node in graph.nodes:
        if node.op_type != "Add":
            continue
        steps = [power_of_two_step(graph, dequantize_of(graph, name)) for name in node.input]
        result = power_of_two_step(graph, quantize_behind(graph, node.output[0]))
        # Sums of multiples of the result's step need no rounding.
        if result is not None and all(steps) and any(step is not None and step < result for step in steps):
            found.append(node)
    return found
