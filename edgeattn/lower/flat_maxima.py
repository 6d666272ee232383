"""Take the maximum over a few channels where they lie apart in memory: OpenVINO is slow where they lie together.

OpenVINO's INT8 convolutions write channels last. Its ReduceMax over so few channels takes them pixel by pixel and
compares within a register: 120 us for 16 channels of 112 x 112 pixels. Reshaped to (N, C, H * W), the map is first
copied with its channels apart, and the maximum is taken across whole rows: 60 us, copy included. From 32 channels
on, or on small maps, there is nothing to gain. A maximum is a choice: no bit changes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import dequantize_of
from edgeattn.onnx_graph import Graph, attribute

__all__ = ["FlatMaxima"]

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class FlatMaxima(EveryGraph):
    """Reduce quantized maps of few channels in three dimensions.

    Attributes:
        max_channels: With more of them, the copy costs what it saves.
        min_pixels: Of a map that is worth a copy.
    """

    name: str = "flat-maxima"
    max_channels: int = 31
    min_pixels: int = 1024

    def __call__(self, graph: Graph) -> bool:
        """Reshape before and after every such maximum."""
        shapes = graph.shapes()
        found = [node for node in graph.nodes if self._is_slow(graph, node, shapes)]
        for node in found:
            _flatten(graph, node, shapes)
        if found:
            graph.reindex()
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that none is left."""
        shapes = graph.shapes()
        left = [node for node in graph.nodes if self._is_slow(graph, node, shapes)]
        return f"{left[0].name!r} takes the maximum over channels that lie together" if left else ""

    def _is_slow(self, graph: Graph, node: NodeProto, shapes: dict[str, Shape]) -> bool:
        if node.op_type != "ReduceMax" or dequantize_of(graph, node.input[0]) is None:
            return False
        shape = shapes.get(node.input[0], ())
        if len(shape) != 4 or shapes.get(node.output[0]) is None or _axes(graph, node) != [1]:
            return False
        return shape[1] <= self.max_channels and shape[2] * shape[3] >= self.min_pixels


def _axes(graph: Graph, node: NodeProto) -> list[int]:
    """Return the axes, which are an input since opset 18."""
    if len(node.input) > 1:
        axes = graph.constant(node.input[1])
        return [] if axes is None else [int(axis) for axis in axes.reshape(-1)]
    return [int(axis) for axis in attribute(node, "axes", [])]


def _flatten(graph: Graph, node: NodeProto, shapes: dict[str, Shape]) -> None:
    source, result = node.input[0], node.output[0]
    flat, reduced = (graph.fresh_name(f"{result}.{part}") for part in ("flat", "reduced"))
    batch, channels, height, width = shapes[source]
    sizes = []
    for name, shape in ((flat, (batch, channels, height * width)), (result, shapes[result])):
        sizes.append(graph.fresh_name(f"{name}.size"))
        graph.constants[sizes[-1]] = np.asarray(shape, np.int64)
    node.input[0], node.output[0] = flat, reduced
    graph.nodes += [
        helper.make_node("Reshape", [source, sizes[0]], [flat], flat),
        helper.make_node("Reshape", [reduced, sizes[1]], [result], f"{reduced}.shaped"),
    ]
