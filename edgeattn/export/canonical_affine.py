"""Fold sums and products with constants into the convolutions and linear layers around them.

Converters from other frameworks leave a bias as an operation of its own (tf2onnx, paddle2onnx), and some networks scale
and shift every map by learned numbers (PP-LCNetV3's affine blocks). Between an INT8 layer and its quantization such an
operation keeps the layer in float32.

Behind a layer everything folds. In front of one, products do; sums only where nothing is padded, because a pad's zeros
do not get them. Computed in float64: each constant is rounded to float32 once.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from edgeattn.export.canonical import own_copy
from edgeattn.onnx_graph import Graph, attribute
from edgeattn.quant.folding import is_unpadded
from edgeattn.quant.pixel_input import preparing_nodes

__all__ = ["fold_affine"]

Float64 = NDArray[np.float64]

_SMALLEST = 1e-12
"""Of a factor, so that weights stay finite in float32, and something of them is left."""


def fold_affine(graph: Graph) -> None:
    """Fold them, in place, in a graph in canonical form.

    Args:
        graph: Without a module behind it: layers get other weights than a module would have.
    """
    shapes = graph.shapes()
    # What is done to the image first says what images the model wants.
    kept = {id(node) for node in preparing_nodes(graph)}
    while any(
        _fold_behind(graph, node, shapes) or (id(node) not in kept and _fold_before(graph, node, shapes))
        for node in graph.nodes
    ):
        pass
    graph.remove_unused()


def _fold_behind(graph: Graph, node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Fold what is done to the result of a layer into it; return whether anything was."""
    found = _affine(graph, node, shapes)
    if found is None:
        return False
    source, factor, shift = found
    layer = graph.producer.get(source)
    if layer is None or not _is_layer(graph, layer) or graph.only_consumer(source) is not node:
        return False
    _scale_rows(graph, layer, factor, _by_channel(shift, _channels(graph, layer)))
    layer.output[0] = node.output[0]
    graph.replace(node)
    return True


def _fold_before(graph: Graph, node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Fold what is done to what convolutions read into them; return whether anything was."""
    found = _affine(graph, node, shapes)
    users = graph.consumers.get(node.output[0], [])
    if found is None or not users or node.output[0] in graph.output_names:
        return False
    source, factor, shift = found
    readers = [user for user in users if user.op_type == "Conv" and user.input[0] == node.output[0]]
    if len(readers) != len(users) or not all(_is_layer(graph, user) for user in users):
        return False
    if shift.any() and not all(is_unpadded(user) for user in users):
        return False
    for user in users:
        _scale_columns(graph, user, factor, shift)
    graph.replace_input(node.output[0], source)
    graph.replace(node)
    return True


def _affine(
    graph: Graph, node: NodeProto, shapes: dict[str, tuple[int, ...]]
) -> tuple[str, Float64, Float64] | None:
    """Return what is read, and by channel (or one number) what it is multiplied by and what is added then."""
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
        return None
    constants = [index for index in (0, 1) if node.input[index] in graph.constants]
    if len(constants) != 1 or (constants == [0] and node.op_type == "Div"):
        return None
    source = node.input[1 - constants[0]]
    shape, value = shapes.get(source, ()), graph.constants[node.input[constants[0]]]
    if len(shape) < 2 or value.dtype != np.float32 or shapes.get(node.output[0]) != shape:
        return None
    numbers = _numbers_of(value, shape)
    if numbers is None or not np.isfinite(numbers).all():
        return None
    if node.op_type in ("Mul", "Div") and not (
        _SMALLEST < np.abs(numbers).min() <= np.abs(numbers).max() < 1 / _SMALLEST
    ):
        return None
    one, zero = np.ones(1), np.zeros(1)
    match node.op_type, constants[0]:
        case "Add", _:
            return source, one, numbers
        case "Sub", 1:
            return source, one, -numbers
        case "Sub", _:
            return source, -one, numbers
        case "Mul", _:
            return source, numbers, zero
        case _:
            return source, 1 / numbers, zero


def _numbers_of(value: NDArray[np.float32], shape: tuple[int, ...]) -> Float64 | None:
    """Return a constant as one number, or one for each channel; None where it differs by place."""
    if value.size == 1:
        return value.astype(np.float64).reshape(1)
    by_axis = (1,) * (len(shape) - value.ndim) + value.shape
    if len(by_axis) > len(shape) or math.prod(by_axis) != by_axis[1] or by_axis[1] != shape[1]:
        return None
    return value.astype(np.float64).reshape(-1)


def _is_layer(graph: Graph, node: NodeProto) -> bool:
    """Whether a layer's weight and bias are constants that may be changed."""
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        if not plain or attribute(node, "transA", 0):
            return False
    elif node.op_type != "Conv":
        return False
    weight, bias = graph.constant(node.input[1]), None
    if len(node.input) > 2:
        bias = graph.constant(node.input[2])
        if bias is None or bias.size != _channels(graph, node):
            return False
    return weight is not None and weight.dtype == np.float32


def _rows_first(node: NodeProto) -> bool:
    return node.op_type == "Conv" or bool(attribute(node, "transB", 0))


def _channels(graph: Graph, layer: NodeProto) -> int:
    return int(graph.constants[layer.input[1]].shape[0 if _rows_first(layer) else 1])


def _by_channel(values: Float64, channels: int) -> Float64:
    return np.broadcast_to(values, (channels,))


def _scale_rows(graph: Graph, layer: NodeProto, factor: Float64, shift: Float64) -> None:
    """Multiply what a layer computes, then add to it."""
    name = own_copy(graph, layer, 1)
    weight = graph.constants[name].astype(np.float64)
    axis = 0 if _rows_first(layer) else 1
    rows = _by_channel(factor, _channels(graph, layer))
    shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
    graph.constants[name] = (weight * rows.reshape(shape)).astype(np.float32)
    _set_bias(graph, layer, _bias_of(graph, layer) * rows + shift)


def _scale_columns(graph: Graph, conv: NodeProto, factor: Float64, shift: Float64) -> None:
    """Let a convolution read what it would have been given before a product and a sum."""
    name = own_copy(graph, conv, 1)
    weight = graph.constants[name].astype(np.float64)
    groups, inputs = int(attribute(conv, "group", 1)), weight.shape[1]
    spread = [1] * (weight.ndim - 2)

    def by_weight(values: Float64) -> Float64:
        """Return the number of each input channel in the shape of the weight."""
        every = _by_channel(values, groups * inputs).reshape(groups, inputs)
        rows = np.repeat(every, len(weight) // groups, axis=0)
        return rows.reshape(len(weight), inputs, *spread)

    if shift.any():
        added = (weight * by_weight(shift)).reshape(len(weight), -1).sum(1)
        _set_bias(graph, conv, _bias_of(graph, conv) + added)
    graph.constants[name] = (weight * by_weight(factor)).astype(np.float32)


def _bias_of(graph: Graph, layer: NodeProto) -> Float64:
    if len(layer.input) < 3:
        return np.zeros(_channels(graph, layer))
    return graph.constants[layer.input[2]].astype(np.float64).reshape(-1)


def _set_bias(graph: Graph, layer: NodeProto, bias: Float64) -> None:
    name = graph.fresh_name(f"{layer.input[1]}.folded_bias")
    graph.constants[name] = bias.astype(np.float32)
    del layer.input[2:]
    layer.input.append(name)
    graph.reindex()
