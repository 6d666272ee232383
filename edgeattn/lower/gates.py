"""Find gates in a graph by what they are: a product of a map with something computed from that map.

Names are not looked at, so the gates of graphs from elsewhere, and swish (``x * sigmoid(x)``), are found too.
"""

from __future__ import annotations

import dataclasses

from onnx import NodeProto

from edgeattn.lower.patterns import dequantize_of
from edgeattn.onnx_graph import Graph

__all__ = ["Gate", "find_gates", "source_of"]


@dataclasses.dataclass(frozen=True)
class Gate:
    """One gated map.

    Attributes:
        product: The Mul that applies the gate.
        source: The tensor that the gate is computed from and applied to, before any Q/DQ pair of its own.
        nodes: What lies between the two, Q/DQ nodes left out, the product too. Products that apply other
            gates of the same map on the way are part of it.
    """

    product: NodeProto
    source: str
    nodes: tuple[NodeProto, ...]


def source_of(graph: Graph, name: str) -> str:
    """Return the tensor behind a Q/DQ pair, or the tensor itself where there is none."""
    pair = dequantize_of(graph, name)
    if pair is None:
        return name
    quantize = graph.producer.get(pair.input[0])
    return quantize.input[0] if quantize is not None and quantize.op_type == "QuantizeLinear" else name


def find_gates(graph: Graph) -> list[Gate]:
    """Return the gates of a graph, in the order of its nodes."""
    found = []
    for product in graph.nodes:
        if product.op_type != "Mul" or any(name in graph.constants for name in product.input):
            continue
        sides = [source_of(graph, name) for name in product.input]
        for gate, applied in (sides, reversed(sides)):
            between = _between(graph, gate, _map_candidates(graph, applied))
            if between is not None:
                found.append(Gate(product, between[0], between[1]))
                break
    return found


def _map_candidates(graph: Graph, name: str) -> list[str]:
    """Return a tensor, and what it is a product of: ``x * a * b`` applies both gates to ``x``."""
    result, waiting = [], [name]
    while waiting:
        current = waiting.pop(0)
        if current in result:
            continue
        result.append(current)
        node = graph.producer.get(current)
        if node is not None and node.op_type == "Mul":
            waiting += [source_of(graph, item) for item in node.input if item not in graph.constants]
    return result


def _between(graph: Graph, gate: str, sources: list[str]) -> tuple[str, tuple[NodeProto, ...]] | None:
    """Return the first of `sources` that `gate` is computed from, and the nodes between the two."""
    for source in sources:
        if source == gate:
            continue
        nodes = _paths(graph, gate, source)
        if nodes:
            return source, nodes
    return None


def _paths(graph: Graph, gate: str, source: str) -> tuple[NodeProto, ...]:
    """Return the nodes on paths from `source` to `gate`, without Q/DQ nodes, in the graph's order."""
    ahead = _descendants(graph, source)
    chosen: set[int] = set()
    waiting = [gate]
    while waiting:
        node = graph.producer.get(waiting.pop())
        if node is None or id(node) in chosen or id(node) not in ahead:
            continue
        chosen.add(id(node))
        waiting += [name for name in node.input if name != source]
    return tuple(
        node
        for node in graph.nodes
        if id(node) in chosen and node.op_type not in ("QuantizeLinear", "DequantizeLinear")
    )


def _descendants(graph: Graph, source: str) -> set[int]:
    seen: set[int] = set()
    waiting = [source]
    while waiting:
        for node in graph.consumers.get(waiting.pop(), []):
            if id(node) not in seen:
                seen.add(id(node))
                waiting += node.output
    return seen
