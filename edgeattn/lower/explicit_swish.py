"""Spell h-swish and h-sigmoid as sums, clips and products, for accelerators that have nothing else.

``x * clip(x + 3, 0, 6) / 6`` is what HardSwish means; NVIDIA's DLA has no such operation, but has these.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.onnx_graph import Graph, attribute

__all__ = ["ExplicitSwish"]

_NAMED = ("HardSwish", "HardSigmoid")


@dataclasses.dataclass(frozen=True)
class ExplicitSwish(EveryGraph):
    """Replace HardSwish and HardSigmoid."""

    name: str = "explicit-swish"

    def __call__(self, graph: Graph) -> bool:
        """Replace every one."""
        found = [node for node in graph.nodes if node.op_type in _NAMED]
        for node in found:
            place = graph.nodes.index(node)
            graph.nodes[place : place + 1] = _spell(graph, node)
        graph.reindex()
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that none is left."""
        left = [node.name for node in graph.nodes if node.op_type in _NAMED]
        return f"{left[0]!r} is left" if left else ""


def _spell(graph: Graph, node: NodeProto) -> list[NodeProto]:
    """Return ``clip(x + beta / alpha, 0, 1 / alpha) * alpha``, times x for h-swish."""
    source, target = node.input[0], node.output[0]
    is_swish = node.op_type == "HardSwish"
    alpha = 1 / 6 if is_swish else float(attribute(node, "alpha", 0.2))
    beta = 0.5 if is_swish else float(attribute(node, "beta", 0.5))
    nodes: list[NodeProto] = []

    def constant(name: str, value: float) -> str:
        full = graph.fresh_name(f"{target}.{name}")
        graph.constants[full] = np.asarray(value, np.float32)
        return full

    def add(kind: str, inputs: list[str], result: str) -> str:
        nodes.append(helper.make_node(kind, inputs, [result], name=result))
        return result

    shifted = add("Add", [source, constant("offset", beta / alpha)], f"{target}.shifted")
    bounds = [constant("low", 0.0), constant("high", 1 / alpha)]
    clipped = add("Clip", [shifted, *bounds], f"{target}.clipped")
    factor = constant("alpha", alpha)
    scaled = add("Mul", [clipped, factor], f"{target}.scaled" if is_swish else target)
    if is_swish:
        add("Mul", [source, scaled], target)
    return nodes
