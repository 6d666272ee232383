"""Swishes whose gate knows the channels, so that channels before a depthwise convolution come to like ranges.

A ReLU lets a factor through: the layer before is divided by it, the one behind multiplies it back, and a tensor with one
scale for all channels is as fine as one with a scale for each (`edgeattn.quant.equalize`). A hard swish does not:
``x * clip(x / 6 + 1/2, 0, 1)`` bends at -3 and 3 whatever the factor. But only its second factor bends. Computed by a
depthwise convolution of one pixel, with a weight and a bias for each channel,

    gate = clip(x * w + 1/2, 0, 1),    w = factor / 6,    y = x * gate,

it takes the factor back, and x and y may both be scaled. All three are operations that INT8 kernels have. A swish (SiLU),
``x * sigmoid(x)``, takes the factor back in front of its sigmoid. Runtimes that compute swishes inside the convolution before
get them back (`edgeattn.lower.whole_swishes`).

With one scale for all channels, networks of such blocks (MobileNetV3, PP-LCNet, EfficientNet) can lose nearly everything where
a few channels are a hundred times as large as the others.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from edgeattn.onnx_graph import Graph, attribute, clip_bounds, is_depthwise

__all__ = ["BIAS", "ChannelGate", "channel_gate", "channel_gates", "with_channel_gates"]

_HARD, _SMOOTH = "HardSwish", "Swish"
_WEIGHT = {_HARD: 1 / 6, _SMOOTH: 1.0}
BIAS = {_HARD: 0.5, _SMOOTH: 0.0}
"""Of the convolution in a gate, by kind."""


@dataclasses.dataclass(frozen=True)
class ChannelGate:
    """A product of a tensor with a gate that is made of the tensor itself.

    Attributes:
        source: The tensor.
        gate: The other factor, between 0 and 1.
        weight: Of the depthwise convolution: what the tensor was divided by, or a sixth of it in a hard swish.
        bias: Of the depthwise convolution: `BIAS` for each channel. To change it would bend the function elsewhere.
        result: The product.
        kind: ``"HardSwish"`` or ``"Swish"``.
    """

    kind: str
    source: str
    gate: str
    weight: str
    bias: str
    result: str


def channel_gates(graph: Graph) -> list[ChannelGate]:
    """Return every such product, in graph order."""
    found = (channel_gate(graph, node) for node in graph.nodes)
    return [item for item in found if item is not None]


def channel_gate(graph: Graph, node: NodeProto) -> ChannelGate | None:
    """Return what a product multiplies, if it is one of a tensor and its own gate."""
    if node.op_type != "Mul" or len(node.input) != 2:
        return None
    for source, gate in (node.input, reversed(node.input)):
        bent = graph.producer.get(gate)
        kind = _kind_of(graph, bent)
        conv = graph.producer.get(bent.input[0]) if bent is not None and kind else None
        if conv is not None and conv.input[0] == source and _is_by_channel(graph, conv, kind):
            return ChannelGate(kind, source, gate, conv.input[1], conv.input[2], node.output[0])
    return None


def _kind_of(graph: Graph, bent: NodeProto | None) -> str:
    """Return of which kind of swish an operation makes the gate; empty if of none."""
    if bent is None:
        return ""
    if bent.op_type == "Clip" and clip_bounds(graph, bent) == (0.0, 1.0):
        return _HARD
    return _SMOOTH if bent.op_type == "Sigmoid" else ""


def _is_by_channel(graph: Graph, conv: NodeProto, kind: str) -> bool:
    if conv.op_type != "Conv" or len(conv.input) < 3:
        return False
    weight, bias = (graph.constant(name) for name in conv.input[1:3])
    if weight is None or bias is None:
        return False
    groups = int(attribute(conv, "group", 1))
    return weight.shape == (groups, 1, 1, 1) and bool(np.all(bias == np.float32(BIAS[kind])))


def with_channel_gates(model: ModelProto) -> ModelProto | None:
    """Return the model with such gates in place of the swishes between a convolution and depthwise ones.

    Args:
        model: Canonical fp32 ONNX. The result computes the same.

    Returns:
        None if it has no such swish.
    """
    graph = Graph(model)
    found = [(node, swish) for node in graph.nodes if (swish := _swish(graph, node)) is not None]
    for node, (kind, source) in found:
        _separate(graph, node, kind, source)
    if not found:
        return None
    graph.sort()
    return graph.to_model()


def _swish(graph: Graph, node: NodeProto) -> tuple[str, str] | None:
    """Return the kind of a swish between a convolution and depthwise ones, and what it reads."""
    if node.op_type == "HardSwish":
        kind, source, readers = _HARD, node.input[0], 1
    elif node.op_type == "Mul" and (source := _read_by_own_sigmoid(graph, node)):
        kind, readers = _SMOOTH, 2
    else:
        return None
    before, users = graph.producer.get(source), graph.consumers.get(node.output[0], [])
    weight = graph.constant(before.input[1]) if before is not None and before.op_type == "Conv" else None
    if weight is None or weight.ndim != 4 or len(graph.consumers[source]) != readers:
        return None
    if {source, node.output[0]} & set(graph.output_names) or not users:
        return None
    read = all(
        user.op_type == "Conv"
        and user.input[1] in graph.constants
        and is_depthwise(user, graph.constants[user.input[1]].shape)
        for user in users
    )
    return (kind, source) if read else None


def _read_by_own_sigmoid(graph: Graph, product: NodeProto) -> str:
    """Return what a product multiplies with its own sigmoid, which nothing else reads."""
    for source, gate in (product.input, reversed(product.input)):
        sigmoid = graph.producer.get(gate)
        if sigmoid is not None and sigmoid.op_type == "Sigmoid" and sigmoid.input[0] == source:
            return source if graph.only_consumer(gate) is not None else ""
    return ""


def _separate(graph: Graph, node: NodeProto, kind: str, source: str) -> None:
    result = node.output[0]
    channels = len(graph.constants[graph.producer[source].input[1]])

    def constant(part: str, value: NDArray[np.float32]) -> str:
        name = graph.fresh_name(f"{result}.{part}")
        graph.constants[name] = value
        return name

    weight = constant("weight", np.full((channels, 1, 1, 1), _WEIGHT[kind], np.float32))
    bias = constant("bias", np.full(channels, BIAS[kind], np.float32))
    bent = graph.fresh_name(f"{result}.bent")
    convolve = helper.make_node(
        "Conv", [source, weight, bias], [bent], bent, group=channels, kernel_shape=[1, 1]
    )
    if kind == _SMOOTH:
        sigmoid = next(user for user in graph.consumers[source] if user.op_type == "Sigmoid")
        graph.replace(sigmoid, convolve, helper.make_node("Sigmoid", [bent], sigmoid.output, sigmoid.name))
        return
    gate = graph.fresh_name(f"{result}.gate")
    bounds = [constant("low", np.asarray(0, np.float32)), constant("high", np.asarray(1, np.float32))]
    graph.replace(
        node,
        convolve,
        helper.make_node("Clip", [bent, *bounds], [gate], gate),
        helper.make_node("Mul", [source, gate], [result], node.name),
    )
