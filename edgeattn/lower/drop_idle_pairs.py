"""Remove Q/DQ pairs behind operations that only move or select values of the same scale.

What comes out of such an operation lies on the grid already, so quantizing it again changes no bit. Runtimes
that propagate quantization through these operations (OpenVINO) would run a kernel for it; those that match
DequantizeLinear, operation, QuantizeLinear (ONNX Runtime) need the pair and do not get this pass.
"""

from __future__ import annotations

import dataclasses

from onnx import NodeProto

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import dequantize_of, remove_pair, same_parameters
from edgeattn.onnx_graph import Graph

__all__ = ["DropIdlePairs"]

_MOVING = frozenset(
    [
        "Concat",
        "Flatten",
        "MaxPool",
        "ReduceMax",
        "GlobalMaxPool",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)


@dataclasses.dataclass(frozen=True)
class DropIdlePairs(EveryGraph):
    """Remove pairs that change no bit."""

    name: str = "drop-idle-pairs"

    def __call__(self, graph: Graph) -> bool:
        """Remove the pairs from the input on, so that each finds the DequantizeLinear that it repeats."""
        changed = False
        for node in list(graph.nodes):
            if node.op_type == "QuantizeLinear" and _is_idle(graph, node):
                changed |= remove_pair(graph, node)
        return changed

    def ensures(self, graph: Graph) -> str:
        """Check that no idle pair is left."""
        left = [
            node.name
            for node in graph.nodes
            if node.op_type == "QuantizeLinear"
            and node.output[0] not in graph.output_names
            and graph.consumers.get(node.output[0])
            and _is_idle(graph, node)
        ]
        return f"{left[0]!r} quantizes what lies on its grid already" if left else ""


def _is_idle(graph: Graph, quantize: NodeProto) -> bool:
    users = graph.consumers.get(quantize.output[0], [])
    if any(
        user.op_type != "DequantizeLinear" or not same_parameters(graph, quantize, user) for user in users
    ):
        return False
    return quantize.input[0] in graph.producer and _on_grid(graph, quantize.input[0], quantize)


def _on_grid(graph: Graph, name: str, quantize: NodeProto) -> bool:
    """Return whether every value of a tensor is one that `quantize` would leave as it is."""
    source = dequantize_of(graph, name)
    if source is not None:
        return same_parameters(graph, source, quantize)
    node = graph.producer.get(name)
    if node is None or node.op_type not in _MOVING:
        return False
    moved = node.input if node.op_type == "Concat" else node.input[:1]
    return all(_on_grid(graph, item, quantize) for item in moved)
