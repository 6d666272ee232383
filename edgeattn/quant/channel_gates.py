"""Hard swishes whose gate knows the channels, so that channels before a depthwise convolution come to like ranges.

A ReLU lets a factor through: the layer before is divided by it, the one behind multiplies it back, and a tensor with one
scale for all channels is as fine as one with a scale for each (`edgeattn.quant.equalize`). A hard swish does not:
``x * clip(x / 6 + 1/2, 0, 1)`` bends at -3 and 3 whatever the factor. But only its second factor bends. Computed by a
depthwise convolution of one pixel, with a weight and a bias for each channel,

    gate = clip(x * w + 1/2, 0, 1),    w = factor / 6,    y = x * gate,

it takes the factor back, and x and y may both be scaled. All three are operations that INT8 kernels have. Runtimes that
compute a hard swish inside the convolution before it get it back (`edgeattn.lower.whole_swishes`).

With one scale for all channels, MobileNetV3 and PP-LCNet can lose nearly everything where a few channels are a hundred times
as large as the others.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import ModelProto, NodeProto, helper

from edgeattn.onnx_graph import Graph, attribute, clip_bounds

__all__ = ["ChannelGate", "channel_gate", "channel_gates", "with_channel_gates"]

_SIXTH, _HALF = 1 / 6, 0.5


@dataclasses.dataclass(frozen=True)
class ChannelGate:
    """A product of a tensor with a gate that is made of the tensor itself.

    Attributes:
        source: The tensor.
        gate: The other factor, between 0 and 1.
        weight: Of the depthwise convolution; a sixth of the factor that the tensor was divided by.
        bias: Of the depthwise convolution: one half for each channel. To change it would bend the function elsewhere.
        result: The product.
    """

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
        clip = graph.producer.get(gate)
        if clip is None or clip.op_type != "Clip" or clip_bounds(graph, clip) != (0.0, 1.0):
            continue
        conv = graph.producer.get(clip.input[0])
        if conv is not None and conv.input[0] == source and _is_by_channel(graph, conv):
            return ChannelGate(source, gate, conv.input[1], conv.input[2], node.output[0])
    return None


def _is_by_channel(graph: Graph, conv: NodeProto) -> bool:
    if conv.op_type != "Conv" or len(conv.input) < 3:
        return False
    weight, bias = (graph.constant(name) for name in conv.input[1:3])
    if weight is None or bias is None:
        return False
    groups = int(attribute(conv, "group", 1))
    return weight.shape == (groups, 1, 1, 1) and bool(np.all(bias == np.float32(_HALF)))


def with_channel_gates(model: ModelProto) -> ModelProto | None:
    """Return the model with such gates in place of the hard swishes between a convolution and depthwise ones.

    Args:
        model: Canonical fp32 ONNX. The result computes the same.

    Returns:
        None if it has no such hard swish.
    """
    graph = Graph(model)
    found = [node for node in graph.nodes if _lies_before_depthwise(graph, node)]
    for node in found:
        _separate(graph, node)
    if not found:
        return None
    graph.sort()
    return graph.to_model()


def _lies_before_depthwise(graph: Graph, node: NodeProto) -> bool:
    if node.op_type != "HardSwish" or node.output[0] in graph.output_names:
        return False
    before = graph.producer.get(node.input[0])
    if before is None or before.op_type != "Conv" or graph.only_consumer(node.input[0]) is None:
        return False
    weight = graph.constant(before.input[1])
    users = graph.consumers.get(node.output[0], [])
    return (
        weight is not None
        and weight.ndim == 4
        and bool(users)
        and all(_is_depthwise(graph, u) for u in users)
    )


def _is_depthwise(graph: Graph, node: NodeProto) -> bool:
    weight = graph.constant(node.input[1]) if node.op_type == "Conv" else None
    groups = int(attribute(node, "group", 1))
    return weight is not None and groups > 1 and weight.shape[:2] == (groups, 1)


def _separate(graph: Graph, node: NodeProto) -> None:
    source, result = node.input[0], node.output[0]
    channels = len(graph.constants[graph.producer[source].input[1]])
    names = {part: graph.fresh_name(f"{result}.{part}") for part in ("weight", "bias", "bent", "gate")}
    graph.constants[names["weight"]] = np.full((channels, 1, 1, 1), _SIXTH, np.float32)
    graph.constants[names["bias"]] = np.full(channels, _HALF, np.float32)
    bounds = []
    for part, value in (("low", 0.0), ("high", 1.0)):
        bounds.append(graph.fresh_name(f"{result}.{part}"))
        graph.constants[bounds[-1]] = np.asarray(value, np.float32)
    bent, gate = names["bent"], names["gate"]
    graph.replace(
        node,
        helper.make_node(
            "Conv",
            [source, names["weight"], names["bias"]],
            [bent],
            bent,
            group=channels,
            kernel_shape=[1, 1],
        ),
        helper.make_node("Clip", [bent, *bounds], [gate], gate),
        helper.make_node("Mul", [source, gate], [result], node.name),
    )
