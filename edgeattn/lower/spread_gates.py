"""Multiply a map by each gate and sum the products, instead of summing the gates first.

Triplet Attention gates a map with ``x * (a + b + c) / 3``, where the gates broadcast from rows, columns and
channels. Their sum is as large as the map. OpenVINO computes sums of two broadcast operands in a kernel of
their own and writes the sum to memory as float32; ``(x*a + x*b + x*c) / 3`` is one kernel that reads the
map once. The two differ by rounding of float32 only: at most one step after quantization, where a value lies
on the border between two.
"""

from __future__ import annotations

import dataclasses

from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.copy_gates import GATES
from edgeattn.lower.patterns import dequantize_of
from edgeattn.onnx_graph import Graph

__all__ = ["SpreadGates"]


@dataclasses.dataclass(frozen=True)
class _Gating:
    """A product of a map with a sum of gates.

    Attributes:
        product: The Mul to be replaced.
        map_name: What is gated.
        gates: The summands.
        factor: A scalar constant that the sum is multiplied by, or an empty string.
        inner: Nodes that only make the sum.
    """

    product: NodeProto
    map_name: str
    gates: tuple[str, ...]
    factor: str
    inner: tuple[NodeProto, ...]


@dataclasses.dataclass(frozen=True)
class SpreadGates(EveryGraph):
    """Rewrite ``x * (a + b + c) * k`` as ``(x*a + x*b + x*c) * k``."""

    name: str = "spread-gates"

    def __call__(self, graph: Graph) -> bool:
        """Rewrite every product of a map with a sum of gates."""
        found = _gatings(graph)
        for gating in found:
            gone = {id(node) for node in (gating.product, *gating.inner)}
            graph.nodes = [node for node in graph.nodes if id(node) not in gone]
            graph.nodes += _spread(gating)
        if found:
            graph.reindex()
            graph.sort()
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that no map is multiplied by a sum of gates."""
        left = _gatings(graph)
        return f"{left[0].product.output[0]!r} still multiplies by a sum of gates" if left else ""


def _gatings(graph: Graph) -> list[_Gating]:
    candidates = (_gating(graph, node) for node in graph.nodes if node.op_type == "Mul")
    return [gating for gating in candidates if gating is not None]


def _gating(graph: Graph, product: NodeProto) -> _Gating | None:
    for side in (0, 1):
        name, inner = product.input[side], list[NodeProto]()
        scaled, factor = _scaled_sum(graph, name)
        if scaled is not None:
            inner.append(scaled)
            name = next(item for item in scaled.input if item != factor)
        gates = _summands(graph, name, inner)
        if len(gates) > 1 and all(_is_gate(graph, gate) for gate in gates):
            return _Gating(product, product.input[1 - side], tuple(gates), factor, tuple(inner))
    return None


def _scaled_sum(graph: Graph, name: str) -> tuple[NodeProto | None, str]:
    """Return the Mul with a scalar constant that writes `name`, and that constant."""
    node = graph.producer.get(name)
    if node is None or node.op_type != "Mul" or graph.only_consumer(name) is None:
        return None, ""
    for item in node.input:
        value = graph.constant(item)
        if value is not None and value.size == 1:
            return node, item
    return None, ""


def _summands(graph: Graph, name: str, inner: list[NodeProto]) -> list[str]:
    """Return the leaves of a tree of sums that nothing else reads, noting the sums in `inner`."""
    node = graph.producer.get(name)
    if node is None or node.op_type != "Add" or graph.only_consumer(name) is None:
        return [name]
    inner.append(node)
    return [leaf for item in node.input for leaf in _summands(graph, item, inner)]


def _is_gate(graph: Graph, name: str) -> bool:
    """Whether a tensor is a sigmoid's result, possibly quantized and reshaped."""
    node = graph.producer.get(name)
    while node is not None and node.op_type in ("Reshape", "Transpose"):
        name = node.input[0]
        node = graph.producer.get(name)
    pair = dequantize_of(graph, name)
    if pair is not None:
        quantize = graph.producer.get(pair.input[0])
        node = graph.producer.get(quantize.input[0]) if quantize is not None else None
    return node is not None and node.op_type in GATES


def _spread(gating: _Gating) -> list[NodeProto]:
    target = gating.product.output[0]
    nodes: list[NodeProto] = []

    def add(kind: str, inputs: list[str], output: str) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output))
        return output

    products = [
        add("Mul", [gating.map_name, gate], f"{target}.gated{index}")
        for index, gate in enumerate(gating.gates)
    ]
    last = "" if gating.factor else target
    total = products[0]
    for index, item in enumerate(products[1:], 1):
        is_last = index == len(products) - 1
        total = add("Add", [total, item], last if is_last and last else f"{target}.sum{index}")
    if gating.factor:
        add("Mul", [total, gating.factor], target)
    return nodes
