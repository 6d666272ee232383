"""Give every pair a zero point of its own: OpenVINO changes those of others where one constant serves several.

Where Q/DQ pairs on both sides of a ReduceSum, or of a Pad along one axis, read the same zero point, OpenVINO 2026.4's
low-precision transformations subtract it once in place of once for each addend, and pad with the integer 0. With a
constant for each pair it computes both as written. Exporters here write one for each; other tools merge equal constants.
"""

from __future__ import annotations

import dataclasses

from onnx import NodeProto

from edgeattn.lower.base import EveryGraph
from edgeattn.onnx_graph import Graph

__all__ = ["OwnZeroPoints"]


@dataclasses.dataclass(frozen=True)
class OwnZeroPoints(EveryGraph):
    """Copy zero points that several pairs read."""

    name: str = "own-zero-points"

    def __call__(self, graph: Graph) -> bool:
        """Give each QuantizeLinear, and what reads its integers, a copy unless it is alone."""
        seen: set[str] = set()
        changed = False
        for node in _quantizers(graph):
            name = node.input[2]
            if name not in seen:
                seen.add(name)
                continue
            own = graph.fresh_name(f"{node.output[0]}.zero_point")
            graph.constants[own] = graph.constants[name]
            for user in (node, *graph.consumers.get(node.output[0], [])):
                if user.op_type in ("QuantizeLinear", "DequantizeLinear") and list(user.input[2:]) == [name]:
                    user.input[2] = own
            changed = True
        if changed:
            graph.reindex()
        return changed

    def ensures(self, graph: Graph) -> str:
        """Check that no two pairs share one."""
        names = [node.input[2] for node in _quantizers(graph)]
        shared = sorted({name for name in names if names.count(name) > 1})
        return f"several pairs read {shared[0]!r}" if shared else ""


def _quantizers(graph: Graph) -> list[NodeProto]:
    return [
        node
        for node in graph.nodes
        if node.op_type == "QuantizeLinear" and len(node.input) > 2 and node.input[2] in graph.constants
    ]
