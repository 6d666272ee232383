"""Repeat small gates in memory before they meet a map, where the runtime's broadcast is slow.

ONNX Runtime keeps INT8 maps channels last and multiplies in spans: a gate that varies along channels only is
applied pixel by pixel, in as many calls of a span of C bytes. For a few dozen channels the calls cost four
times the arithmetic. Copying the gate to a whole row (or map) first takes a few microseconds and changes no
bit. The copy is written between two transposes, which ONNX Runtime's own change of layout cancels. And a product
with a broadcast runs in one thread; one of two operands of equal size is shared among threads, if it is large.

The bounds are from products alone, in maps of MobileNetV2's sizes (AMD Zen 4 with AVX512-VNNI): those of large maps take a
fifth to two fifths less time with two threads, and 8 to 13 % more with one where a row would have done.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import dequantize_of
from edgeattn.onnx_graph import Graph

__all__ = ["WidenGates"]

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class WidenGates(EveryGraph):
    """Widen the small operands of quantized products and sums.

    Attributes:
        max_channels: Spans of this many bytes are long enough as they are.
        max_copied_channels: A gate over pixels is copied to at most this many channels: what copies is a convolution,
            slower than the broadcast for more.
        min_pixels: Smaller maps have too few spans for a copy to pay.
        min_parallel_size: From so many elements on the runtime shares a product among threads, if both operands
            are of one size; None leaves them as they are.
    """

    name: str = "widen-gates"
    max_channels: int = 256
    max_copied_channels: int = 24
    min_pixels: int = 196
    min_parallel_size: int | None = 180_000

    def __call__(self, graph: Graph) -> bool:
        """Widen what is worth it."""
        shapes = graph.shapes()
        work = [
            (node, index, wanted)
            for node in graph.nodes
            for index in (0, 1)
            if (wanted := self._target(graph, node, index, shapes)) is not None
        ]
        for node, index, wanted in work:
            source = dequantize_of(graph, node.input[index])
            if source is not None:
                _widen(graph, node, index, source, shapes[node.input[index]], wanted)
        if work:
            graph.reindex()
        return bool(work)

    def ensures(self, graph: Graph) -> str:
        """Check that nothing worth widening is left."""
        shapes = graph.shapes()
        for node in graph.nodes:
            if any(self._target(graph, node, index, shapes) is not None for index in (0, 1)):
                return f"{node.name!r} still broadcasts over short spans"
        return ""

    def _target(self, graph: Graph, node: NodeProto, index: int, shapes: dict[str, Shape]) -> Shape | None:
        """Return the shape that an operand should get, or None."""
        if node.op_type not in ("Mul", "Add") or len(node.input) != 2:
            return None
        if any(dequantize_of(graph, name) is None for name in node.input):
            return None
        small, other = shapes.get(node.input[index], ()), shapes.get(node.input[1 - index], ())
        if len(small) != 4 or len(other) != 4:
            return None
        if max(small) == 1:
            return None  # one value for the whole map (an expert's weight) is one long span already
        whole = tuple(max(pair) for pair in zip(small, other, strict=True))
        if small == whole or small[0] != whole[0]:
            return None
        _, channels, height, width = whole
        if small[1] != channels:
            # A gate over pixels only is left alone where it would be repeated along neither axis.
            few = channels <= self.max_copied_channels and height * width >= self.min_pixels
            return (small[0], channels, *small[2:]) if few else None
        if self.min_parallel_size is not None and channels * height * width >= self.min_parallel_size:
            return whole
        if small[3] == width or channels > self.max_channels or height * width < self.min_pixels:
            return None  # a row is a long span already
        # One row of pixels is a span of W * C bytes.
        return (*whole[:2], 1, width) if small[2] == 1 and other == whole else whole


def _widen(graph: Graph, node: NodeProto, index: int, source: NodeProto, small: Shape, wanted: Shape) -> None:
    stem = graph.fresh_name(f"{node.output[0]}.widened{index}")
    if small[1] == wanted[1]:
        quantized = _repeat(graph, stem, source.input[0], wanted)
        graph.nodes.append(helper.make_node("DequantizeLinear", [quantized, *source.input[1:]], [stem], stem))
    else:
        _copy_to_channels(graph, stem, source, wanted[1])
    node.input[index] = stem


def _repeat(graph: Graph, stem: str, quantized: str, wanted: Shape) -> str:
    shape = f"{stem}.shape"
    graph.constants[shape] = np.asarray((wanted[0], wanted[2], wanted[3], wanted[1]), np.int64)
    names = [f"{stem}.{part}" for part in ("last", "wide", "quantized")]
    graph.nodes += [
        helper.make_node("Transpose", [quantized], [names[0]], names[0], perm=[0, 2, 3, 1]),
        helper.make_node("Expand", [names[0], shape], [names[1]], names[1]),
        helper.make_node("Transpose", [names[1]], [names[2]], names[2], perm=[0, 3, 1, 2]),
    ]
    return names[2]


def _copy_to_channels(graph: Graph, stem: str, source: NodeProto, channels: int) -> None:
    """Copy one channel to all by a 1x1 convolution with the integer weight 1: bytes in, bytes out."""
    weight = f"{stem}.ones"
    graph.constants[f"{weight}.quantized"] = np.ones((channels, 1, 1, 1), np.int8)
    graph.constants[f"{weight}.scale"] = np.ones(channels, np.float32)
    graph.constants[f"{weight}.zero_point"] = np.zeros(channels, np.int8)
    parts = [f"{weight}.{part}" for part in ("quantized", "scale", "zero_point")]
    parameters = list(source.input[1:])
    graph.nodes += [
        helper.make_node("DequantizeLinear", parts, [weight], weight, axis=0),
        helper.make_node("Conv", [source.output[0], weight], [f"{stem}.map"], f"{stem}.map"),
        helper.make_node(
            "QuantizeLinear", [f"{stem}.map", *parameters], [f"{stem}.quantized"], f"{stem}.quantized"
        ),
        helper.make_node("DequantizeLinear", [f"{stem}.quantized", *parameters], [stem], stem),
    ]
