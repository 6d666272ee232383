"""Average a quantized map over its rows or columns with a depthwise convolution of ones.

ONNX Runtime's integer average pool visits one output at a time and takes 0.5 ns for each element; its
depthwise convolution works on all channels of a pixel at once and takes a tenth of that. Every weight is
the integer 1 with the scale 1/area, so the accumulator holds the exact sum, and only the rounding of a sum
that lies right between two steps can differ: at most one step of the result.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import dequantize_of, quantize_behind
from edgeattn.onnx_graph import Graph, attribute

__all__ = ["PoolToDepthwise"]


@dataclasses.dataclass(frozen=True)
class PoolToDepthwise(EveryGraph):
    """Rewrite quantized average pools without padding.

    Attributes:
        whole_maps: Also rewrite pools over the whole map, which most runtimes do well as they are.
    """

    name: str = "pool-to-depthwise"
    whole_maps: bool = False

    def __call__(self, graph: Graph) -> bool:
        """Rewrite the pools."""
        shapes = graph.shapes()
        found = [node for node in graph.nodes if self._matches(graph, node, shapes)]
        for node in found:
            _rewrite(graph, node, shapes[node.input[0]][1])
        if found:
            graph.reindex()
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that no such pool is left."""
        shapes = graph.shapes()
        left = [node.name for node in graph.nodes if self._matches(graph, node, shapes)]
        return f"{left[0]!r} is still an average pool" if left else ""

    def _matches(self, graph: Graph, node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> bool:
        if node.op_type != "AveragePool" or any(attribute(node, "pads", [])):
            return False
        if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or attribute(
            node, "ceil_mode", 0
        ):
            return False
        if any(step != 1 for step in attribute(node, "dilations", [])):
            return False
        shape = shapes.get(node.input[0], ())
        if dequantize_of(graph, node.input[0]) is None or quantize_behind(graph, node.output[0]) is None:
            return False
        kernel = tuple(attribute(node, "kernel_shape"))
        return len(shape) == 4 and (self.whole_maps or kernel != shape[2:])


def _rewrite(graph: Graph, node: NodeProto, channels: int) -> None:
    kernel = list(attribute(node, "kernel_shape"))
    stem = f"{node.output[0]}.ones"
    names = {part: graph.fresh_name(f"{stem}.{part}") for part in ("quantized", "scale", "zero_point")}
    graph.constants[names["quantized"]] = np.ones((channels, 1, *kernel), np.int8)
    graph.constants[names["scale"]] = np.full(channels, 1 / math.prod(kernel), np.float32)
    graph.constants[names["zero_point"]] = np.zeros(channels, np.int8)
    weight = graph.fresh_name(f"{stem}.dequantized")
    place = graph.nodes.index(node)
    graph.nodes[place : place + 1] = [
        helper.make_node("DequantizeLinear", list(names.values()), [weight], weight, axis=0),
        helper.make_node(
            "Conv",
            [node.input[0], weight],
            list(node.output),
            node.name,
            kernel_shape=kernel,
            strides=list(attribute(node, "strides", [1, 1])),
            group=channels,
        ),
    ]
    graph.reindex()
