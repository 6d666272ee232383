"""Find h-sigmoid and h-swish in the ways that people write them.

Authors of mobile attention and older exporters spell them as sums, clips, products and quotients:
``x * relu6(x + 3) / 6``, in one order or the other. Written out, every step between would be quantized by itself; as
one operation it is rounded once, and runtimes compute it inside of the convolution before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onnx import NodeProto, helper

from edgeattn.onnx_graph import Graph, attribute, clip_bounds

__all__ = ["fold_activations"]

Shapes = Mapping[str, tuple[int, ...]]

_SAME = 1e-6
_LEAST_OPSET = 14
"""The first with HardSwish."""


def fold_activations(graph: Graph) -> None:
    """Replace sums, clips and quotients by HardSigmoid and HardSwish where they mean these, in place."""
    if graph.opset < _LEAST_OPSET:
        return
    shapes = graph.shapes()
    for clip in [node for node in graph.nodes if node.op_type == "Clip"]:
        _fold_clip(graph, clip, shapes)
    for gate in [node for node in graph.nodes if node.op_type == "HardSigmoid"]:
        _fold_gate(graph, gate, shapes)


def _fold_clip(graph: Graph, clip: NodeProto, shapes: Shapes) -> None:
    """Fold ``clip(x + offset, 0, high)`` and the quotient behind it, with a product by x in between perhaps."""
    bounds, total = clip_bounds(graph, clip), graph.producer.get(clip.input[0])
    if bounds is None or bounds[0] != 0.0 or total is None or graph.only_consumer(clip.input[0]) is None:
        return
    source, offset = _with_number(graph, total, "Add")
    reader = graph.only_consumer(clip.output[0])
    if source is None or reader is None:
        return
    divisor = _divisor(graph, reader, clip.output[0])
    if divisor is not None:
        if math.isclose(divisor, bounds[1], rel_tol=_SAME):
            alpha, beta = 1 / divisor, offset / divisor
            _replace(graph, shapes, [total, clip, reader], source, "HardSigmoid", alpha=alpha, beta=beta)
        return
    # The product comes first in x * relu6(x + 3) / 6.
    last = graph.only_consumer(reader.output[0])
    if last is None or not _multiplies(reader, source, clip.output[0]):
        return
    divisor = _divisor(graph, last, reader.output[0])
    if divisor is not None and all(
        math.isclose(value, 6.0, rel_tol=_SAME) for value in (divisor, bounds[1], 2 * offset)
    ):
        _replace(graph, shapes, [total, clip, reader, last], source, "HardSwish")


def _fold_gate(graph: Graph, gate: NodeProto, shapes: Shapes) -> None:
    """Fold the product of x and its h-sigmoid."""
    source, product = gate.input[0], graph.only_consumer(gate.output[0])
    if product is None or not _multiplies(product, source, gate.output[0]):
        return
    alpha, beta = float(attribute(gate, "alpha", 0.2)), float(attribute(gate, "beta", 0.5))
    if math.isclose(alpha, 1 / 6, rel_tol=_SAME) and math.isclose(beta, 0.5, rel_tol=_SAME):
        _replace(graph, shapes, [gate, product], source, "HardSwish")


def _multiplies(node: NodeProto, one: str, other: str) -> bool:
    return node.op_type == "Mul" and sorted(node.input) == sorted([one, other])


def _with_number(graph: Graph, node: NodeProto, op_type: str) -> tuple[str | None, float]:
    """Return the other operand of a sum or product with one number, and the number."""
    if node.op_type == op_type:
        for index, name in enumerate(node.input):
            value = graph.scalar(name)
            if value is not None and node.input[1 - index] not in graph.constants:
                return node.input[1 - index], value
    return None, 0.0


def _divisor(graph: Graph, node: NodeProto, name: str) -> float | None:
    """Return the number above 0 that a node divides a tensor by, also as a product with its reciprocal."""
    if node.op_type == "Div":
        value = graph.scalar(node.input[1]) if node.input[0] == name else None
        return value if value is not None and value > 0 else None
    source, factor = _with_number(graph, node, "Mul")
    return 1 / factor if source == name and factor > 0 else None


def _replace(
    graph: Graph, shapes: Shapes, nodes: list[NodeProto], source: str, op_type: str, **attributes: Any
) -> None:
    """Put one operation in the place of several; its result keeps the last one's name, which a hook can reach."""
    *inner, last = nodes
    # A number of higher rank than x makes another shape of it.
    if shapes.get(source) != shapes.get(last.output[0]):
        return
    graph.replace(last, helper.make_node(op_type, [source], list(last.output), last.output[0], **attributes))
    graph.nodes = [node for node in graph.nodes if not any(node is other for other in inner)]
    graph.reindex()
