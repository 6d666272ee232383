"""Remove Q/DQ pairs between operations that the runtime computes in one kernel.

Where a kernel takes a convolution's accumulator through an activation, or a map through several products
and sums, a pair in the middle only makes it round there. Without it the tensor differs from the quantized
one by at most half of its step (more where calibration clips it), and towards the float network. A pair that stands
for the network's own clip stays.
"""

from __future__ import annotations

import dataclasses

from onnx import NodeProto

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import dequantize_of, remove_pair, same_parameters
from edgeattn.onnx_graph import Graph, is_clip

__all__ = ["DropInnerPairs"]

_ACTIVATIONS = frozenset({"HardSwish", "HardSigmoid", "Sigmoid"})
_ELEMENTWISE = frozenset({"Mul", "Add"})


@dataclasses.dataclass(frozen=True)
class DropInnerPairs(EveryGraph):
    """Remove pairs inside a kernel's chain."""

    name: str = "drop-inner-pairs"

    def __call__(self, graph: Graph) -> bool:
        """Remove the pairs."""
        changed = False
        for node in _inner(graph):
            changed |= remove_pair(graph, node)
        return changed

    def ensures(self, graph: Graph) -> str:
        """Check that no inner pair is left."""
        left = _inner(graph)
        return f"{left[0].name!r} still rounds inside a kernel" if left else ""


def _inner(graph: Graph) -> list[NodeProto]:
    return [node for node in graph.nodes if node.op_type == "QuantizeLinear" and _is_inner(graph, node)]


def _is_inner(graph: Graph, quantize: NodeProto) -> bool:
    before = graph.producer.get(quantize.input[0])
    if before is None or graph.only_consumer(quantize.input[0]) is None or is_clip(quantize):
        return False
    pair = graph.only_consumer(quantize.output[0])
    if pair is None or pair.op_type != "DequantizeLinear" or not same_parameters(graph, quantize, pair):
        return False
    after = graph.only_consumer(pair.output[0])
    if after is None:
        return False
    if before.op_type == "Conv":
        return after.op_type in _ACTIVATIONS
    if before.op_type not in _ELEMENTWISE or after.op_type not in _ELEMENTWISE:
        return False
    # Residual sums stay as they are: their runtimes fuse the sum into the convolution.
    return not any(_is_convolved(graph, name) for name in (*before.input, *after.input))


def _is_convolved(graph: Graph, name: str) -> bool:
    """Return whether a tensor comes straight out of a convolution without activation, quantized or not."""
    source = dequantize_of(graph, name)
    if source is not None:
        quantize = graph.producer.get(source.input[0])
        name = quantize.input[0] if quantize is not None else name
    node = graph.producer.get(name)
    return node is not None and node.op_type == "Conv" and not _feeds_gate(graph, name)


def _feeds_gate(graph: Graph, name: str) -> bool:
    """Return whether a tensor (through its pair) is also multiplied: it is a gated map then."""
    seen = list(graph.consumers.get(name, []))
    for node in list(seen):
        for result in node.output:
            seen += graph.consumers.get(result, [])
            for user in graph.consumers.get(result, []):
                seen += [item for out in user.output for item in graph.consumers.get(out, [])]
    return any(node.op_type == "Mul" for node in seen)
