"""Find h-sigmoid and h-swish in the ways that people write them.

Authors of mobile attention and older exporters spell them as sums, clips, products and quotients:
``x * relu6(x + 3) / 6``, in one order or the other. Written out, every step between would be quantized by itself; as
one operation it is rounded once, and runtimes compute it inside of the convolution before.
"""

from __future__ import annotations

import math
from typing import Any

from onnx import NodeProto, helper

from edgeattn.onnx_graph import Graph, attribute

__all__ = ["fold_activations"]

_SAME = 1e-6
_LEAST_OPSET = 14
"""The first with HardSwish."""


def fold_activations(graph: Graph) -> None:
    """Replace sums, clips and quotients by HardSigmoid and HardSwish where they mean these, in place."""
    if graph.opset < _LEAST_OPSET:
        return
    for clip in [node for node in graph.nodes if node.op_type == "Clip"]:
        _fold_clip(graph, clip)
    for gate in [node for node in graph.nodes if node.op_type == "HardSigmoid"]:
        _fold_gate(graph, gate)


def _fold_clip(graph: Graph, clip: NodeProto) -> None:
    """Fold ``clip(x + offset, 0, high)`` and the quotient behind it, with a product by x in between perhaps."""
    low, high = (graph.scalar(name) if name else None for name in (*clip.input[1:3], "", "")[:2])
    total = graph.producer.get(clip.input[0])
    if low != 0.0 or not high or total is None or graph.only_consumer(clip.input[0]) is None:
        return
    source, offset = _with_constant(graph, total, "Add")
    reader = graph.only_consumer(clip.output[0])
    if source is None or reader is None:
        return
    scaled, divisor = _quotient(graph, reader, clip.output[0])
    if scaled is not None:
        if math.isclose(divisor, high, rel_tol=_SAME):
            _replace(
                graph, [total, clip, reader], "HardSigmoid", source, alpha=1 / divisor, beta=offset / divisor
            )
        return
    # The product comes first in x * relu6(x + 3) / 6.
    if reader.op_type != "Mul" or sorted(reader.input) != sorted([source, clip.output[0]]):
        return
    last = graph.only_consumer(reader.output[0])
    scaled, divisor = (None, 0.0) if last is None else _quotient(graph, last, reader.output[0])
    if last is None or scaled is None:
        return
    if all(math.isclose(value, 6.0, rel_tol=_SAME) for value in (divisor, high, 2 * offset)):
        _replace(graph, [total, clip, reader, last], "HardSwish", source)


def _fold_gate(graph: Graph, gate: NodeProto) -> None:
    """Fold the product of x and its h-sigmoid."""
    source, product = gate.input[0], graph.only_consumer(gate.output[0])
    if (
        product is None
        or product.op_type != "Mul"
        or sorted(product.input) != sorted([source, gate.output[0]])
    ):
        return
    alpha, beta = float(attribute(gate, "alpha", 0.2)), float(attribute(gate, "beta", 0.5))
    if math.isclose(alpha, 1 / 6, rel_tol=_SAME) and math.isclose(beta, 0.5, rel_tol=_SAME):
        _replace(graph, [gate, product], "HardSwish", source)


def _with_constant(graph: Graph, node: NodeProto, op_type: str) -> tuple[str | None, float]:
    """Return the other operand of a sum or product with one number, and the number."""
    if node.op_type == op_type:
        for index, name in enumerate(node.input):
            value = graph.scalar(name)
            if value is not None and node.input[1 - index] not in graph.constants:
                return node.input[1 - index], value
    return None, 0.0


def _quotient(graph: Graph, node: NodeProto, name: str) -> tuple[str | None, float]:
    """Return `name` and what it is divided by, if `node` divides it by a number above 0."""
    if node.op_type == "Div":
        value = graph.scalar(node.input[1]) if node.input[0] == name else None
        return (name, value) if value is not None and value > 0 else (None, 0.0)
    source, factor = _with_constant(graph, node, "Mul")
    return (name, 1 / factor) if source == name and factor > 0 else (None, 0.0)


def _replace(graph: Graph, nodes: list[NodeProto], op_type: str, source: str, **attributes: Any) -> None:
    """Put one operation in the place of several; its result keeps the last one's name, which a hook can reach."""
    result = nodes[-1].output[0]
    if any(node.output[0] in graph.output_names for node in nodes[:-1]):
        return
    place = next(index for index, node in enumerate(graph.nodes) if node is nodes[-1])
    graph.nodes[place] = helper.make_node(op_type, [source], [result], result, **attributes)
    graph.nodes = [node for node in graph.nodes if not any(node is other for other in nodes)]
    graph.reindex()
