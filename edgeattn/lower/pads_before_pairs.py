"""Move pads of integers in front of the QuantizeLinear that writes them: TensorRT knows no constant of INT8 but weights.

The export pads integers with the one that stands for zero where a zero point is in biases (`edgeattn.quant.folding`).
The same pad of the float tensor, with what that integer stands for, quantizes to the same integers, and TensorRT-RTX
computes it in the kernel that quantizes: the engine has no kernel more.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.onnx_graph import Graph, is_clip, mark_clip

__all__ = ["PadsBeforePairs"]


@dataclasses.dataclass(frozen=True)
class PadsBeforePairs(EveryGraph):
    """Pad floats instead of their integers."""

    name: str = "pads-before-pairs"

    def __call__(self, graph: Graph) -> bool:
        """Move the pads; what reads the integers without the pad gets a pair of its own."""
        found = _pads(graph)
        for pad in found:
            _move(graph, pad)
        if found:
            graph.remove_unused()
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that no pad of integers is left."""
        left = _pads(graph)
        return f"{left[0].name!r} still pads integers" if left else ""


def _pads(graph: Graph) -> list[NodeProto]:
    return [
        node for node in graph.nodes if node.op_type == "Pad" and _quantize_before(graph, node) is not None
    ]


def _quantize_before(graph: Graph, pad: NodeProto) -> NodeProto | None:
    node = graph.producer.get(pad.input[0])
    if node is None or node.op_type != "QuantizeLinear" or len(node.input) < 3 or len(pad.input) < 3:
        return None
    known = all(graph.scalar(name) is not None for name in (*node.input[1:3], pad.input[2]))
    return node if known else None


def _move(graph: Graph, pad: NodeProto) -> None:
    quantize = _quantize_before(graph, pad)
    if quantize is None:
        return
    scale, zero = (graph.constants[name].astype(np.float64) for name in quantize.input[1:3])
    value = graph.fresh_name(f"{pad.input[2]}.real")
    graph.constants[value] = ((graph.constants[pad.input[2]].astype(np.float64) - zero) * scale).astype(
        np.float32
    )
    padded = graph.fresh_name(f"{quantize.input[0]}.padded")
    integers = pad.output[0]
    place = graph.nodes.index(pad)
    again = helper.make_node("QuantizeLinear", [padded, *quantize.input[1:]], [integers], integers)
    if is_clip(quantize):
        mark_clip(again)
    graph.nodes[place : place + 1] = [
        helper.make_node("Pad", [quantize.input[0], pad.input[1], value], [padded], padded),
        again,
    ]
    graph.reindex()
