"""Spell maxima, minima and sums of magnitudes so that OpenVINO rounds their results where the graph says.

OpenVINO 2026.4's CPU reductions take the QuantizeLinear behind them in. With a float input, a maximum or minimum is
then stored as a whole number first and divided by the scale afterwards: with a scale of 0.02 its results are up to 25
steps off. A sum of magnitudes (ReduceL1) is wrong from any input. Sums and means are right.

Rounding keeps order, so the greatest of rounded values is the greatest value rounded: quantizing before the reduction
as well changes nothing, and leaves it only 8-bit steps to choose from. A sum of magnitudes becomes Abs and ReduceSum.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import quantize_behind
from edgeattn.onnx_graph import Graph, attribute

__all__ = ["SafeReductions"]

_CHOOSING = ("GlobalMaxPool", "ReduceMax", "ReduceMin")
# OpenVINO looks through these: what they read was quantized, so what they write is.
_MOVING = ("Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


@dataclasses.dataclass(frozen=True)
class SafeReductions(EveryGraph):
    """Quantize what a maximum or minimum of floats chooses from; write ReduceL1 as Abs and ReduceSum."""

    name: str = "safe-reductions"

    def __call__(self, graph: Graph) -> bool:
        """Rewrite every such reduction whose result is quantized."""
        changed = False
        for node in list(graph.nodes):
            quantize = quantize_behind(graph, node.output[0])
            if quantize is None:
                continue
            if node.op_type == "ReduceL1":
                _split_magnitudes(graph, node)
            elif _chooses_from_floats(graph, node):
                _quantize_before(graph, node, quantize)
            else:
                continue
            graph.reindex()
            changed = True
        return changed

    def ensures(self, graph: Graph) -> str:
        """Check that none is left."""
        for node in graph.nodes:
            wrong = node.op_type == "ReduceL1" or _chooses_from_floats(graph, node)
            if wrong and quantize_behind(graph, node.output[0]) is not None:
                return f"{node.name!r} reduces floats to a quantized result"
        return ""


def _chooses_from_floats(graph: Graph, node: NodeProto) -> bool:
    if node.op_type not in _CHOOSING:
        return False
    before = graph.producer.get(node.input[0])
    while before is not None and before.op_type in _MOVING:
        before = graph.producer.get(before.input[0])
    return before is None or before.op_type != "DequantizeLinear"


def _quantize_before(graph: Graph, node: NodeProto, quantize: NodeProto) -> None:
    source = str(node.input[0])
    parameters = list(quantize.input[1:])
    if any(graph.constants[name].size != 1 for name in parameters):
        return  # no plan has ranges by channel here
    names = [graph.fresh_name(f"{node.output[0]}.before.{part}") for part in ("quantized", "dequantized")]
    place = graph.nodes.index(node)
    graph.nodes[place:place] = [
        helper.make_node("QuantizeLinear", [source, *parameters], names[:1], names[0]),
        helper.make_node("DequantizeLinear", [names[0], *parameters], names[1:], names[1]),
    ]
    node.input[0] = names[1]


def _split_magnitudes(graph: Graph, node: NodeProto) -> None:
    magnitudes = graph.fresh_name(f"{node.output[0]}.magnitudes")
    inputs = [magnitudes, *node.input[1:]]
    axes = attribute(node, "axes")
    if axes is not None:  # an attribute before opset 18, which is an input of ReduceSum since 13
        inputs.append(graph.fresh_name(f"{node.output[0]}.axes"))
        graph.constants[inputs[-1]] = np.asarray(axes, np.int64)
    kept = [item for item in node.attribute if item.name != "axes"]
    total = helper.make_node("ReduceSum", inputs, list(node.output), node.name)
    total.attribute.extend(kept)
    place = graph.nodes.index(node)
    graph.nodes[place : place + 1] = [
        helper.make_node("Abs", [node.input[0]], [magnitudes], magnitudes),
        total,
    ]
