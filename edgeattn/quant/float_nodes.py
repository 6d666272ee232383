"""What stays in float whatever the policy: 8 bits would spoil it, and it costs next to nothing."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from edgeattn.onnx_graph import Graph

__all__ = ["BOUNDED_OUTPUT", "answering_nodes", "coordinate_nodes", "divisor_nodes", "masked_nodes"]

BOUNDED_OUTPUT: dict[str, tuple[float, float]] = {
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
}
"""Operations whose result has a known range: its scale needs no calibration."""
_MASK = -1000.0
_TO_A_NORM = frozenset({"Sqrt", "Clip", "Max", "Expand", "Reshape", "Unsqueeze"})
_SUMS = frozenset({"ReduceSum", "ReduceMean"})


def answering_nodes(graph: Graph) -> list[NodeProto]:
    """Return what turns scores into the answer, such as a softmax at the end.

    Nothing in INT8 reads it, and rounding it would spoil the answer for no speed.
    """
    return [
        node
        for node in graph.nodes
        if node.op_type in BOUNDED_OUTPUT and node.output[0] in graph.output_names
    ]


def coordinate_nodes(graph: Graph) -> list[NodeProto]:
    """Return the nodes between a convolution (or Gemm) and the grid that a GridSample reads.

    A grid names pixels by fractions of the map: in 256 steps it would miss them by a good part of one.
    What the layer before predicts, an offset of a few pixels, is fine in 8 bits; adding it to where it
    starts is not.
    """
    result: dict[int, NodeProto] = {}
    waiting = [node.input[1] for node in graph.nodes if node.op_type == "GridSample"]
    while waiting:
        node = graph.producer.get(waiting.pop())
        if node is None or id(node) in result or node.op_type in ("Conv", "Gemm", "GridSample"):
            continue
        result[id(node)] = node
        waiting.extend(name for name in node.input if name)
    return list(result.values())


def divisor_nodes(graph: Graph) -> list[NodeProto]:
    """Return the squares that are summed to the norm that something is divided by.

    In 256 steps squares of small values are 0; where all of a sum are, what is divided by the norm has no bound.
    """
    result: dict[int, NodeProto] = {}
    seen: set[int] = set()
    waiting = [node.input[1] for node in graph.nodes if node.op_type == "Div"]
    waiting += [node.input[0] for node in graph.nodes if node.op_type == "Reciprocal"]
    while waiting:
        node = graph.producer.get(waiting.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op_type in _TO_A_NORM or (node.op_type == "Add" and graph.constants.keys() & set(node.input)):
            waiting += [name for name in node.input if name not in graph.constants]
        elif node.op_type in _SUMS:
            square = graph.producer.get(node.input[0])
            if square is not None and square.op_type == "Mul" and square.input[0] == square.input[1]:
                result[id(square)] = square
    return list(result.values())


def masked_nodes(graph: Graph, below: float = _MASK) -> list[NodeProto]:
    """Return what puts a mask of constants `below` a bound over scores, and what follows up to their softmax, included.

    A range that holds the mask leaves nothing of 8 bits to the scores.
    """
    result: dict[int, NodeProto] = {}
    waiting = [
        node
        for node in graph.nodes
        if node.op_type in ("Add", "Where")
        and any(
            name in graph.constants and graph.constants[name].size and np.min(graph.constants[name]) < below
            for name in node.input
        )
    ]
    while waiting:
        node = waiting.pop()
        if id(node) in result:
            continue
        result[id(node)] = node
        if node.op_type != "Softmax":
            waiting.extend(other for other in graph.nodes if node.output[0] in other.input)
    return list(result.values())
