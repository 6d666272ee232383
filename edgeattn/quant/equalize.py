"""Cross-layer equalization: bring the channels of a tensor to like ranges, at no cost when it runs.

Dividing output channel c of a convolution by s_c and multiplying what the next convolution reads of
that channel by s_c changes nothing in real numbers, also through ReLU (Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721). Before a depthwise
convolution it makes a per-tensor quantization as fine as a per-channel one, and costs the weights
nothing: they have a scale per output channel on both sides.

Tensors that residual adds join have the same channels, so they are scaled together: a group holds all
tensors of a residual stream, the convolutions that write it and those that read it.

A hard swish stops a factor, but for one whose gate takes it back (`edgeattn.quant.channel_gates`).

A ReLU6 stays: channels are only ever scaled up towards the largest of them, so on the calibration images
no value that a clip wrote reaches the clip anew; beyond them a quantized range saturates anyway. That
holds for groups whose extent was measured behind their only clip, as it is before depthwise convolutions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from edgeattn.errors import ModelError
from edgeattn.onnx_graph import Graph, attribute, is_depthwise
from edgeattn.quant.channel_gates import channel_gate

__all__ = ["ChannelGroup", "apply_channel_scales", "channel_scales", "find_groups", "scale_clips"]

LARGEST_GAIN = 64.0
_CHANNELWISE = ("AveragePool", "GlobalAveragePool", "Flatten")
"""Means of a channel's own values, and what only renames them: a factor passes through."""


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Tensors that share their channels, with every layer that writes or reads them.

    Attributes:
        name: The first of the tensors, in graph order.
        tensors: All tensors that keep the channels' scaling.
        writers: Weights and biases of the convolutions that write them (bias may be empty).
        readers: Weights of the layers that read them, and whether each is a depthwise convolution. The input
            channels of the others are their second axis.
    """

    name: str
    tensors: tuple[str, ...]
    writers: tuple[tuple[str, str], ...]
    readers: tuple[tuple[str, bool], ...]

    @property
    def is_free(self) -> bool:
        """Whether scaling costs the weights no precision: all readers are depthwise."""
        return all(depthwise for _, depthwise in self.readers)

    @property
    def constants(self) -> frozenset[str]:
        """All weights and biases that scaling changes."""
        names = {name for writer in self.writers for name in writer} | {name for name, _ in self.readers}
        return frozenset(names - {""})


def find_groups(graph: Graph) -> list[ChannelGroup]:
    """Return the groups of tensors whose channels can be scaled without changing the function."""
    groups = []
    seen: set[str] = set()
    for node in graph.nodes:
        if node.op_type == "Conv" and node.output[0] not in seen:
            group = _grow(graph, node.output[0])
            if group is not None:
                seen.update(group.tensors)
                groups.append(group)
    return groups


def channel_scales(channel_high: NDArray[np.float32], strength: float) -> NDArray[np.float64]:
    """Return what each channel is divided by, at most 1.

    Args:
        channel_high: Largest magnitude seen in each channel.
        strength: 1 gives all channels the same range, 0 leaves them as they are.
    """
    high = np.maximum(channel_high.astype(np.float64), 1e-6)
    scales: NDArray[np.float64] = np.maximum((high / high.max()) ** strength, 1 / LARGEST_GAIN)
    return scales


def apply_channel_scales(graph: Graph, scales: Mapping[str, Sequence[float]]) -> None:
    """Divide the channels of the named groups, and make the layers that read them multiply back.

    Raises:
        ModelError: If the graph has no such group, or one with another number of channels.
    """
    groups = {group.name: group for group in find_groups(graph)} if scales else {}
    for name, values in scales.items():
        group = groups.get(name)
        factor = np.asarray(values, np.float64)
        if group is None or len(factor) != len(graph.constants[group.writers[0][0]]):
            raise ModelError(
                f"The plan scales {len(factor)} channels of {name!r}, which the graph lacks or joins "
                "otherwise. A plan belongs to one graph: calibrate this one."
            )
        for weight, bias in group.writers:
            ranks = (-1,) + (1,) * (graph.constants[weight].ndim - 1)
            graph.constants[weight] = (graph.constants[weight] / factor.reshape(ranks)).astype(np.float32)
            if bias:
                graph.constants[bias] = (graph.constants[bias] / factor).astype(np.float32)
        for weight, depthwise in group.readers:
            value = graph.constants[weight]
            axis = 0 if depthwise else 1
            shape = [-1 if dim == axis else 1 for dim in range(value.ndim)]
            graph.constants[weight] = (value * factor.reshape(shape)).astype(np.float32)


def scale_clips(graph: Graph, scales: Mapping[str, Sequence[float]]) -> None:
    """Give clips the bounds that scaled values have, so that tensors without a quantizer are cut where they were.

    Channels that only grow need none of it, but the factors of exact grids shrink them. Exported graphs keep their clips:
    there ranges inside the bounds do the cutting.

    Args:
        graph: After `apply_channel_scales`.
        scales: The same.
    """
    factors = {
        name: max(scales[group.name])
        for group in find_groups(graph)
        if group.name in scales
        for name in group.tensors
    }
    for node in graph.nodes:
        factor = factors.get(node.output[0], 1.0)
        bound = graph.scalar(node.input[2]) if node.op_type == "Clip" and len(node.input) > 2 else None
        if factor != 1.0 and bound is not None:
            name = f"{node.output[0]}.scaled_bound"
            graph.constants[name] = np.asarray(bound / factor, np.float32)
            node.input[2] = name
    graph.reindex()


def _grow(graph: Graph, start: str) -> ChannelGroup | None:
    """Follow a tensor through activations and adds; None where anything else touches it."""
    pending, tensors = [start], set[str]()
    writers: dict[str, str] = {}
    readers: dict[str, bool] = {}
    while pending:
        name = pending.pop()
        if name in tensors:
            continue
        if name in graph.output_names or name in graph.input_names:
            return None
        tensors.add(name)
        source = graph.producer[name]
        if source.op_type == "Conv" and _is_own(graph, source):
            writers[source.input[1]] = source.input[2] if len(source.input) > 2 else ""
        elif source.op_type == "Add" and not any(item in graph.constants for item in source.input):
            pending += source.input
        elif _is_scalable_activation(graph, source) or source.op_type in _CHANNELWISE:
            pending.append(source.input[0])
        elif (product := channel_gate(graph, source)) is not None:
            pending.append(product.source)
        else:
            return None
        for user in graph.consumers.get(name, []):
            if user.op_type == "Conv" and user.input[0] == name and _is_own(graph, user):
                depthwise = is_depthwise(user, graph.constants[user.input[1]].shape)
                if not depthwise and attribute(user, "group", 1) != 1:
                    return None
                readers[user.input[1]] = depthwise
            elif user.op_type == "Gemm" and user.input[0] == name and _is_own(graph, user):
                if attribute(user, "transA", 0) or not attribute(user, "transB", 0):
                    return None
                readers[user.input[1]] = False
            elif user.op_type in ("Add", *_CHANNELWISE) or _lets_pass(graph, user, name):
                pending.append(user.output[0])
            else:
                return None
    if not readers or not writers:
        return None
    order = [name for node in graph.nodes for name in node.output if name in tensors]
    return ChannelGroup(order[0], tuple(order), tuple(writers.items()), tuple(readers.items()))


def _is_own(graph: Graph, node: NodeProto) -> bool:
    """Whether the layer's constants are known and nobody else's."""
    return all(name in graph.constants and len(graph.consumers[name]) == 1 for name in node.input[1:])


def _lets_pass(graph: Graph, node: NodeProto, name: str) -> bool:
    """Whether a factor of a tensor is one of what a node makes of it."""
    product = channel_gate(graph, node)
    return _is_scalable_activation(graph, node) or (product is not None and product.source == name)


def _is_scalable_activation(graph: Graph, node: NodeProto) -> bool:
    if node.op_type == "Relu":
        return True
    return node.op_type == "Clip" and graph.scalar(node.input[1]) == 0.0
