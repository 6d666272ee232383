"""Give depthwise convolutions channels in whole blocks of 16, for which alone ONNX Runtime has a fast kernel.

Its symmetric integer kernel for depthwise convolutions takes multiples of 16 channels (onnxruntime/core/mlas/lib/
convsym.cpp); any other number goes through the general kernel, which takes twice the time: 72 channels of 56x56 pixels
204 us, 80 channels 103 (Intel Xeon with AVX512-VNNI, one thread). MobileNetV3 has 72, 88, 120, 184 and 200 channels in its
depthwise layers, and narrower networks more such numbers.

The channels that are missing are copies of the last one, through everything that carries channels along (gates, pools and
products with them), and are read with weights of zero: no number changes. A copy, and not zeros, because it behaves as
its original does wherever a network divides or takes roots.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import dequantized_constant, int8_product
from edgeattn.onnx_graph import Array, Graph, attribute, is_depthwise
from edgeattn.quant.channel_classes import ChannelClass, find_channel_classes

__all__ = ["BlockChannels"]


@dataclasses.dataclass(frozen=True)
class BlockChannels(EveryGraph):
    """Widen the maps around INT8 depthwise convolutions to whole blocks of channels, where that saves time.

    Attributes:
        block: Channels that the fast kernel takes at once.
        saved_ns: What the general kernel takes longer for each product, measured as above.
        value_ns: What a value more costs in each map.
    """

    name: str = "block-channels"
    block: int = 16
    saved_ns: float = 0.045
    value_ns: float = 0.3

    def __call__(self, graph: Graph) -> bool:
        """Widen every class of channels that is worth it."""
        found = self._unaligned(graph)
        for item in found:
            _widen(graph, item, -item.channels % self.block)
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that none is left."""
        left = self._unaligned(graph)
        return f"{left[0].name!r} still has {left[0].channels} channels" if left else ""

    def _unaligned(self, graph: Graph) -> list[ChannelClass]:
        shapes = graph.shapes()
        saved_ns = {
            node.output[0]: self.saved_ns * math.prod((*shapes[node.output[0]], *shapes[node.input[1]][1:]))
            for node in graph.nodes
            if _is_slow(graph, node, self.block) and node.output[0] in shapes
        }
        found = []
        for item in find_channel_classes(_without_rounding(graph)) if saved_ns else ():
            missing = -item.channels % self.block
            # Parts of one layer's output, as Coordinate Attention's gates, lie between others' channels.
            if not missing or not item.readers or any(start for *_, start in item.writers):
                continue
            maps = [name for name in item.tensors if graph.producer[name].op_type == "QuantizeLinear"]
            values = sum(math.prod(shapes[name]) // item.channels for name in maps)
            if sum(saved_ns.get(name, 0.0) for name in item.tensors) > missing * values * self.value_ns:
                found.append(item)
        return found


def _is_slow(graph: Graph, node: NodeProto, block: int) -> bool:
    """Whether a node is a depthwise INT8 convolution with another number of channels."""
    product = int8_product(graph, node) if node.op_type == "Conv" else None
    if product is None:
        return False
    shape = product.weight.integers.shape
    return is_depthwise(node, shape) and shape[0] % block != 0


def _without_rounding(graph: Graph) -> Graph:
    """Return the graph as its channels see it: quantized constants are constants, and other Q/DQ nodes carry along."""
    view = Graph(graph.to_model())
    nodes = []
    for node in view.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            constant = dequantized_constant(view, node.output[0])
            if constant is not None:
                view.constants[node.output[0]] = constant.integers
                continue
            scale = view.constant(node.input[1])
            if scale is not None and scale.size == 1:
                node = helper.make_node("Identity", node.input[:1], node.output, node.name)
        nodes.append(node)
    view.nodes = nodes
    view.reindex()
    return view


def _widen(graph: Graph, item: ChannelClass, missing: int) -> None:
    for name, axis, _ in item.writers:
        _append_slices(graph, name, axis, missing, are_copies=True)
    for name, axis in item.readers:
        _append_slices(graph, name, axis, missing, are_copies=False)
    for node in graph.nodes:
        if node.output[0] not in item.tensors:
            continue
        if node.op_type == "Reshape":
            sizes = graph.constants[node.input[1]].copy()
            # 0 stands for as many as there are.
            sizes[1] = 0 if sizes[1] == item.channels else sizes[1]
            node.input[1] = _add_constant(graph, node.input[1], sizes)
        for value in node.attribute:
            if value.name == "group" and value.i == item.channels > 1:
                value.i += missing
    graph.reindex()


def _append_slices(graph: Graph, name: str, axis: int, missing: int, *, are_copies: bool) -> None:
    """Append copies of the last slice, or zeros, to a constant, quantized or not."""
    constant = dequantized_constant(graph, name)
    if constant is None:
        zero = None if are_copies else np.zeros(1)
        graph.replace_input(
            name, _add_constant(graph, name, _longer(graph.constants[name], axis, missing, zero))
        )
        return
    node, own_axis = constant.node, int(attribute(constant.node, "axis", 1))
    has_slices = constant.scale.size > 1
    zero_point = constant.zero_point
    if has_slices:
        zero_point = zero_point.reshape(
            [-1 if dim == own_axis else 1 for dim in range(constant.integers.ndim)]
        )
    integers = _longer(constant.integers, axis, missing, None if are_copies else zero_point)
    node.input[0] = _add_constant(graph, node.input[0], integers)
    if has_slices and own_axis == axis:
        for place in range(1, len(node.input)):
            values = _longer(graph.constants[node.input[place]], 0, missing, None)
            node.input[place] = _add_constant(graph, node.input[place], values)


def _longer(value: Array, axis: int, missing: int, fill: Array | None) -> Array:
    """Return a constant with more slices along an axis: of `fill`, or copies of the last one without it."""
    last = np.take(value, [-1], axis)
    more = last if fill is None else np.broadcast_to(fill, last.shape).astype(value.dtype)
    return np.concatenate([value, np.repeat(more, missing, axis)], axis)


def _add_constant(graph: Graph, stem: str, value: Array) -> str:
    name = graph.fresh_name(f"{stem}.blocks")
    graph.constants[name] = value
    return name
