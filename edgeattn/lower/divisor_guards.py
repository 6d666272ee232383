"""What stays float32 because float16 would lose the constant that keeps a divisor from being 0.

``x / max(length, 1e-12)`` and ``x / sqrt(sum + 1e-12)`` are 0 where all of x are; float16 rounds such a constant to 0, or
has no number for its reciprocal, and the quotient is none. So what lies between the constant and the division is left
in float32.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import NodeProto

from edgeattn.onnx_graph import Graph

__all__ = ["guarded_nodes"]

_LEAST_NORMAL = 2.0**-14
"""Of float16; what 1 is divided by may not be smaller."""
_GUARDS = frozenset({"Add", "Max", "Clip"})
_CARRIES = frozenset(
    {"Clip", "Expand", "Identity", "Max", "Reshape", "Sqrt", "Squeeze", "Transpose", "Unsqueeze"}
)
_UNDEFINED_AT_ZERO = frozenset({"Div", "Log", "Pow", "Reciprocal"})


def guarded_nodes(graph: Graph) -> set[int]:
    """Return the ids of the nodes from such a constant to what divides by its result, both included."""
    least: dict[str, float] = {}
    for node in graph.nodes:
        bounds = [least[name] for name in node.input if name in least] if node.op_type in _CARRIES else []
        own = _constant(graph, node)
        bounds += [] if own is None else [own]
        if bounds:
            bound = math.sqrt(min(bounds)) if node.op_type == "Sqrt" else min(bounds)
            if bound < _LEAST_NORMAL:
                least[node.output[0]] = bound
    kept: set[int] = set()
    wanted: set[str] = set()
    for node in reversed(graph.nodes):
        if node.output[0] in wanted:
            read = list(node.input)
        elif node.op_type in _UNDEFINED_AT_ZERO:
            read = list(node.input[1:2] if node.op_type == "Div" else node.input[:1])
        elif node.op_type == "Sqrt" and node.output[0] not in least:
            # Its root is a number that float16 has.
            read = list(node.input)
        else:
            continue
        small = {name for name in read if name in least}
        if small or node.output[0] in wanted:
            kept.add(id(node))
            wanted |= small
    return kept


def _constant(graph: Graph, node: NodeProto) -> float | None:
    """Return the constant that a node's result does not fall below, where that is too small for float16."""
    if node.op_type not in _GUARDS:
        return None
    names = node.input[1:2] if node.op_type == "Clip" else node.input
    values = [
        graph.constants[name] for name in names if name in graph.constants and graph.constants[name].size
    ]
    least = [float(np.max(value)) for value in values if value.dtype.kind == "f"]
    return next((value for value in least if 0 < value < _LEAST_NORMAL), None)
