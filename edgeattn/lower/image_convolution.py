"""Spell the way back to an image's pixels as one depthwise convolution of single pixels.

What stands in front of a quantized image (`edgeattn.quant.pixel_input`) is a pad, a product and a sum by channel: three
passes over the image in ONNX Runtime. A depthwise convolution with a kernel of one pixel, which pads, multiplies and adds a
bias, is one: behind a pad a value is its bias, as it was the sum's constant. Float rounding is that of a product and a sum,
or of both at once: only a value within a hundred-thousandth of a step of the border between two may round the other way,
and pixels lie in the middle.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import NodeProto, helper

from edgeattn.export.canonical import zero_pads
from edgeattn.lower.base import EveryGraph
from edgeattn.onnx_graph import Array, Graph

__all__ = ["ImageConvolution"]


@dataclasses.dataclass(frozen=True)
class ImageConvolution(EveryGraph):
    """Turn pad, product and sum in front of a quantized image into a convolution."""

    name: str = "image-convolution"

    def __call__(self, graph: Graph) -> bool:
        """Rewrite the image's prefix."""
        found = _prefix(graph)
        if found is not None:
            _rewrite(graph, found)
        return found is not None

    def ensures(self, graph: Graph) -> str:
        """Check that no such sum is left."""
        left = _prefix(graph)
        return f"{left.total.name!r} still adds to an image by itself" if left is not None else ""


@dataclasses.dataclass(frozen=True)
class _Prefix:
    """The nodes, the constants by channel, and what is padded: (top, left, bottom, right)."""

    nodes: tuple[NodeProto, ...]
    total: NodeProto
    factor: Array
    shift: Array
    sides: list[int]


def _prefix(graph: Graph) -> _Prefix | None:
    if len(graph.inputs) != 1:
        return None
    name, sides, nodes = graph.input_names[0], [0, 0, 0, 0], list[NodeProto]()
    node = graph.only_consumer(name)
    if node is not None and node.op_type == "Pad":
        found = zero_pads(graph, node)
        if found is None:
            return None
        sides, name = found, node.output[0]
        nodes.append(node)
        node = graph.only_consumer(name)
    constants = []
    for kind in ("Mul", "Add"):
        value = graph.constant(node.input[1]) if node is not None and node.op_type == kind else None
        if node is None or value is None or node.input[0] != name:
            return None
        if value.ndim != 4 or value.size != value.shape[1] or value.dtype != np.float32:
            return None
        constants.append(value.reshape(-1))
        nodes.append(node)
        name = node.output[0]
        node = graph.only_consumer(name)
    if node is None or node.op_type != "QuantizeLinear" or constants[0].shape != constants[1].shape:
        return None
    factor, shift = constants
    return _Prefix(tuple(nodes), nodes[-1], factor, shift, sides)


def _rewrite(graph: Graph, found: _Prefix) -> None:
    result, channels = found.total.output[0], len(found.factor)
    weight, bias = (graph.fresh_name(f"{result}.{part}") for part in ("factor", "shift"))
    graph.constants[weight], graph.constants[bias] = found.factor.reshape(channels, 1, 1, 1), found.shift
    graph.nodes = [node for node in graph.nodes if not any(node is other for other in found.nodes)]
    convolution = helper.make_node(
        "Conv",
        [graph.input_names[0], weight, bias],
        [result],
        result,
        group=channels,
        kernel_shape=[1, 1],
        pads=found.sides,
    )
    graph.nodes.insert(0, convolution)
    graph.reindex()
    graph.remove_unused()
