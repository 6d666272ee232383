"""Give every reader of a gate its own copy of it: a sigmoid fuses only into what reads it alone."""

from __future__ import annotations

import dataclasses

from onnx import NodeProto

from edgeattn.lower.base import EveryGraph
from edgeattn.onnx_graph import Graph

__all__ = ["GATES", "VIEWS", "CopyGates", "shared_gates"]

GATES = ("Sigmoid", "HardSigmoid")
VIEWS = frozenset({"Slice", "Split", "Reshape", "Squeeze", "Unsqueeze", "Transpose"})
"""They only say which part of a gate goes where, so that one gate may have several."""


@dataclasses.dataclass(frozen=True)
class CopyGates(EveryGraph):
    """Copy sigmoids that several operations read; no number changes."""

    name: str = "copy-gates"

    def __call__(self, graph: Graph) -> bool:
        """Give all readers but the first a copy."""
        found = shared_gates(graph)
        for node in found:
            for user in graph.consumers[node.output[0]][1:]:
                clone = NodeProto()
                clone.CopyFrom(node)
                clone.output[0] = graph.fresh_name(f"{node.output[0]}.copy")
                clone.name = clone.output[0]
                graph.replace_input(node.output[0], clone.output[0], [user])
                graph.nodes.append(clone)
                graph.reindex()
        if found:
            graph.sort()
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that none is shared."""
        left = shared_gates(graph)
        return f"{left[0].name or left[0].output[0]!r} still has several readers" if left else ""


def shared_gates(graph: Graph) -> list[NodeProto]:
    """Return the gates that several operations read."""
    found = []
    for node in graph.nodes:
        if node.op_type in GATES and node.output[0] not in graph.output_names:
            users = graph.consumers.get(node.output[0], [])
            if len(users) > 1 and not all(user.op_type in VIEWS for user in users):
                found.append(node)
    return found
