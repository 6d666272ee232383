"""Spell reductions so that OpenVINO computes what the graph says.

OpenVINO 2026.4's CPU plugin gets these wrong in INT8 graphs:

* Maxima and minima of floats whose result is quantized: the reduction takes the QuantizeLinear in, and stores its result
  as a whole number before dividing it by the scale. With a scale of 0.02 it is up to 25 steps off.
* Sums of magnitudes (ReduceL1) whose result is quantized.
* Averages that count their padding (torch's default), of integers with a zero point: the padding is the integer 0.

Rounding keeps order, so the greatest of rounded values is the greatest value rounded: quantizing before the reduction
as well changes nothing, and leaves it only 8-bit steps to choose from. Magnitudes are taken by Abs, and zeros are put
around the map by Concat: a Pad would be taken into the average again.
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
    """Respell maxima, minima, magnitudes and averages where OpenVINO's INT8 kernels differ from ONNX."""

    name: str = "safe-reductions"

    def __call__(self, graph: Graph) -> bool:
        """Rewrite every such reduction of a quantized graph."""
        if not any(node.op_type == "QuantizeLinear" for node in graph.nodes):
            return False
        changed = False
        for node in list(graph.nodes):
            if _chooses_from_floats(graph, node):
                _quantize_before(graph, node)
            elif node.op_type == "ReduceL1" and quantize_behind(graph, node.output[0]) is not None:
                _split_magnitudes(graph, node)
            elif _counts_padding(node) and (shape := graph.shapes().get(node.input[0])):
                _join_zeros(graph, node, shape)
            else:
                continue
            graph.reindex()
            changed = True
        return changed

    def ensures(self, graph: Graph) -> str:
        """Check that no maximum or minimum of floats is left."""
        left = [node for node in graph.nodes if _chooses_from_floats(graph, node)]
        return f"{left[0].name!r} chooses from floats what is quantized" if left else ""


def _chooses_from_floats(graph: Graph, node: NodeProto) -> bool:
    if node.op_type not in _CHOOSING:
        return False
    quantize = quantize_behind(graph, node.output[0])
    # No plan has ranges by channel of activations.
    if quantize is None or any(graph.constants[name].size != 1 for name in quantize.input[1:]):
        return False
    before = graph.producer.get(node.input[0])
    while before is not None and before.op_type in _MOVING:
        before = graph.producer.get(before.input[0])
    return before is None or before.op_type != "DequantizeLinear"


def _quantize_before(graph: Graph, node: NodeProto) -> None:
    quantize = quantize_behind(graph, node.output[0])
    parameters = list(quantize.input[1:]) if quantize is not None else []
    names = [graph.fresh_name(f"{node.output[0]}.before.{part}") for part in ("quantized", "dequantized")]
    place = graph.nodes.index(node)
    graph.nodes[place:place] = [
        helper.make_node("QuantizeLinear", [node.input[0], *parameters], names[:1], names[0]),
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
    total = helper.make_node("ReduceSum", inputs, list(node.output), node.name)
    total.attribute.extend(item for item in node.attribute if item.name != "axes")
    _replace(graph, node, [helper.make_node("Abs", [node.input[0]], [magnitudes], magnitudes), total])


def _counts_padding(node: NodeProto) -> bool:
    return (
        node.op_type == "AveragePool"
        and bool(attribute(node, "count_include_pad", 0))
        and attribute(node, "auto_pad", "NOTSET") == "NOTSET"
        and not attribute(node, "ceil_mode", 0)
        and any(attribute(node, "pads", []))
    )


def _join_zeros(graph: Graph, node: NodeProto, size: tuple[int, ...]) -> None:
    """Put the padding around the map beforehand, so that the average counts it as map."""
    shape = list(size)
    options = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    del options["count_include_pad"]
    before, after = np.asarray(options.pop("pads"), np.int64).reshape(2, -1)
    source, new = str(node.input[0]), []
    for axis, counts in enumerate(zip(before, after, strict=True), 2):
        parts = [source]
        for place, count in zip((0, len(shape)), counts, strict=True):
            if count:
                zeros = graph.fresh_name(f"{node.output[0]}.zeros")
                sides = [int(count) if dim == axis else length for dim, length in enumerate(shape)]
                graph.constants[zeros] = np.zeros(sides, np.float32)
                parts.insert(place, zeros)
        if len(parts) > 1:
            source = graph.fresh_name(f"{node.output[0]}.padded{axis}")
            new.append(helper.make_node("Concat", parts, [source], source, axis=axis))
        shape[axis] += int(sum(counts))
    new.append(helper.make_node("AveragePool", [source], [node.output[0]], node.name, **options))
    _replace(graph, node, new)


def _replace(graph: Graph, node: NodeProto, new: list[NodeProto]) -> None:
    place = graph.nodes.index(node)
    graph.nodes[place : place + 1] = new
