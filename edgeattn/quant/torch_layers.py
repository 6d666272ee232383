"""ONNX operations on maps in torch: convolutions, pools, normalization, interpolation. None where torch differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from onnx import NodeProto

from edgeattn.onnx_graph import attribute

__all__ = ["LAYERS", "Operation"]

Operation = Callable[[NodeProto, Sequence[Any]], Any]
"""From a node and its inputs (None where left out) to its output, a list of them, or None: not this way."""


def _pads(node: NodeProto, spatial: int) -> tuple[list[int], list[int]]:
    pads = list(attribute(node, "pads", [0] * (2 * spatial)))
    return pads[:spatial], pads[spatial:]


def _padded(node: NodeProto, value: torch.Tensor, fill: float) -> tuple[torch.Tensor, list[int]]:
    """Return the input and the symmetric padding left to the operation."""
    begin, end = _pads(node, value.ndim - 2)
    if begin == end:
        return value, begin
    pairs = [item for pair in zip(reversed(begin), reversed(end), strict=True) for item in pair]
    return F.pad(value, pairs, value=fill), [0] * len(begin)


def _is_plain(node: NodeProto) -> bool:
    return attribute(node, "auto_pad", "NOTSET") == "NOTSET" and not attribute(node, "ceil_mode", 0)


def _conv(node: NodeProto, inputs: Sequence[Any]) -> Any:
    value, weight = inputs[0], inputs[1]
    spatial = value.ndim - 2
    if spatial not in (1, 2) or not _is_plain(node):
        return None
    value, padding = _padded(node, value, 0.0)
    operation = F.conv2d if spatial == 2 else F.conv1d
    return operation(
        value,
        weight,
        inputs[2] if len(inputs) > 2 else None,
        tuple(attribute(node, "strides", [1] * spatial)),
        tuple(padding),
        tuple(attribute(node, "dilations", [1] * spatial)),
        int(attribute(node, "group", 1)),
    )


def _conv_transpose(node: NodeProto, inputs: Sequence[Any]) -> Any:
    value, weight = inputs[0], inputs[1]
    if value.ndim != 4 or not _is_plain(node) or attribute(node, "output_shape"):
        return None
    begin, end = _pads(node, 2)
    if begin != end:
        return None
    return F.conv_transpose2d(
        value,
        weight,
        inputs[2] if len(inputs) > 2 else None,
        tuple(attribute(node, "strides", [1, 1])),
        tuple(begin),
        tuple(attribute(node, "output_padding", [0, 0])),
        int(attribute(node, "group", 1)),
        tuple(attribute(node, "dilations", [1, 1])),
    )


def _gemm(node: NodeProto, inputs: Sequence[Any]) -> Any:
    left = inputs[0].T if attribute(node, "transA", 0) else inputs[0]
    right = inputs[1].T if attribute(node, "transB", 0) else inputs[1]
    result = attribute(node, "alpha", 1.0) * (left @ right)
    if len(inputs) > 2 and inputs[2] is not None:
        result = result + attribute(node, "beta", 1.0) * inputs[2]
    return result


def _pool(node: NodeProto, inputs: Sequence[Any]) -> Any:
    if inputs[0].ndim != 4 or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    kernel, strides = tuple(attribute(node, "kernel_shape")), tuple(attribute(node, "strides", [1, 1]))
    dilations, ceil = tuple(attribute(node, "dilations", [1, 1])), bool(attribute(node, "ceil_mode", 0))
    if node.op_type == "MaxPool":
        value, padding = _padded(node, inputs[0], float("-inf"))
        if len(node.output) > 1 or (ceil and value is not inputs[0]):  # rounding up counts no padding as map
            return None
        return F.max_pool2d(value, kernel, strides, tuple(padding), dilations, ceil)
    if ceil or dilations != (1, 1):
        return None
    if attribute(node, "count_include_pad", 0):
        value, padding = _padded(node, inputs[0], 0.0)
        return F.avg_pool2d(value, kernel, strides, tuple(padding))
    begin, end = _pads(node, 2)
    if begin != end:
        return None
    return F.avg_pool2d(inputs[0], kernel, strides, tuple(begin), count_include_pad=False)


def _batch_norm(node: NodeProto, inputs: Sequence[Any]) -> Any:
    if attribute(node, "training_mode", 0) or len(node.output) > 1:
        return None
    value, gamma, beta, mean, variance = inputs[:5]
    return F.batch_norm(value, mean, variance, gamma, beta, eps=float(attribute(node, "epsilon", 1e-5)))


def _instance_norm(node: NodeProto, inputs: Sequence[Any]) -> Any:
    return F.instance_norm(
        inputs[0], weight=inputs[1], bias=inputs[2], eps=float(attribute(node, "epsilon", 1e-5))
    )


def _group_norm(node: NodeProto, inputs: Sequence[Any]) -> Any:
    groups, channels = int(attribute(node, "num_groups")), inputs[0].shape[1]
    # Before opset 21 there is one factor for each group.
    gamma, beta = (factor.repeat_interleave(channels // factor.numel()) for factor in inputs[1:3])
    return F.group_norm(inputs[0], groups, gamma, beta, float(attribute(node, "epsilon", 1e-5)))


def _layer_norm(node: NodeProto, inputs: Sequence[Any]) -> Any:
    value, gamma = inputs[0], inputs[1]
    axis = int(attribute(node, "axis", -1)) % value.ndim
    shape = value.shape[axis:]
    if len([name for name in node.output if name]) > 1 or gamma.shape != shape:
        return None
    bias = inputs[2] if len(inputs) > 2 else None
    return F.layer_norm(value, shape, gamma, bias, float(attribute(node, "epsilon", 1e-5)))


def _rms_norm(node: NodeProto, inputs: Sequence[Any]) -> Any:
    value, gamma = inputs[0], inputs[1]
    shape = value.shape[int(attribute(node, "axis", -1)) % value.ndim :]
    if gamma.shape != shape:
        return None
    return F.rms_norm(value, list(shape), gamma, float(attribute(node, "epsilon", 1e-5)))


def _pad(node: NodeProto, inputs: Sequence[Any]) -> Any:
    value, mode = inputs[0], attribute(node, "mode", "constant")
    pads = [int(item) for item in inputs[1].tolist()]
    axes = range(value.ndim) if len(inputs) < 4 or inputs[3] is None else inputs[3].tolist()
    around = [(0, 0)] * value.ndim
    for position, axis in enumerate(axes):
        around[int(axis)] = (pads[position], pads[position + len(pads) // 2])
    if mode == "constant":
        fill = 0.0 if len(inputs) < 3 or inputs[2] is None else float(inputs[2])
        return F.pad(value, [side for pair in reversed(around) for side in pair], value=fill)
    names = {"reflect": "reflect", "edge": "replicate"}
    if mode not in names or value.ndim != 4 or any(side for pair in around[:2] for side in pair):
        return None
    if min(side for pair in around for side in pair) < 0:
        return None
    return F.pad(value, [side for pair in reversed(around[2:]) for side in pair], mode=names[mode])


def _resize(node: NodeProto, inputs: Sequence[Any]) -> Any:
    """Interpolate as torch does, in the two spellings that torch exports."""
    mode = attribute(node, "mode", "nearest")
    place = attribute(node, "coordinate_transformation_mode", "half_pixel")
    value = inputs[0]
    if value.ndim != 4 or len(inputs) < 3:
        return None
    if len(inputs) > 3 and inputs[3] is not None:
        size = [int(item) for item in inputs[3].tolist()[2:]]
    else:
        size = [
            int(side * scale) for side, scale in zip(value.shape[2:], inputs[2].tolist()[2:], strict=True)
        ]
    if mode == "nearest" and place == "asymmetric" and attribute(node, "nearest_mode", "") == "floor":
        return F.interpolate(value, size, mode="nearest")
    if mode == "linear" and place in ("half_pixel", "pytorch_half_pixel") and min(size) > 1:
        return F.interpolate(value, size, mode="bilinear", align_corners=False)
    return None


def _grid_sample(node: NodeProto, inputs: Sequence[Any]) -> Any:
    mode = attribute(node, "mode", "linear")
    if mode not in ("bilinear", "linear", "nearest") or inputs[0].ndim != 4:
        return None
    return F.grid_sample(
        inputs[0],
        inputs[1],
        "nearest" if mode == "nearest" else "bilinear",
        attribute(node, "padding_mode", "zeros"),
        bool(attribute(node, "align_corners", 0)),
    )


def _depth_to_space(node: NodeProto, inputs: Sequence[Any]) -> Any:
    value, block = inputs[0], int(attribute(node, "blocksize"))
    if attribute(node, "mode", "DCR") == "CRD":
        return F.pixel_shuffle(value, block)
    count, channels, height, width = value.shape
    parts = value.reshape(count, block, block, channels // block**2, height, width)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(count, -1, height * block, width * block)


def _space_to_depth(node: NodeProto, inputs: Sequence[Any]) -> Any:
    value, block = inputs[0], int(attribute(node, "blocksize"))
    count, channels, height, width = value.shape
    parts = value.reshape(count, channels, height // block, block, width // block, block)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(count, -1, height // block, width // block)


LAYERS: dict[str, Operation] = {
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda node, x: x[0].mean(tuple(range(2, x[0].ndim)), keepdim=True),
    "GlobalMaxPool": lambda node, x: x[0].amax(tuple(range(2, x[0].ndim)), keepdim=True),
    "GridSample": _grid_sample,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": lambda node, x: x[0] @ x[1],
    "MaxPool": _pool,
    "Pad": _pad,
    "RMSNormalization": _rms_norm,
    "Resize": _resize,
    "SpaceToDepth": _space_to_depth,
}
"""By operator; gradients pass through all of them."""
