"""ONNX operations in torch, so that gradients pass through them: a network's graph is tuned as it is."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import NodeProto, helper

from edgeattn.onnx_graph import attribute
from edgeattn.quant.torch_layers import LAYERS, Operation

__all__ = ["OPERATIONS"]


def _clip(node: NodeProto, inputs: Sequence[Any]) -> Any:
    low, high = (None if bound is None else float(bound) for bound in (*inputs[1:], None, None)[:2])
    return torch.clamp(inputs[0], low, high) if (low, high) != (None, None) else inputs[0]


def _reduce(node: NodeProto, inputs: Sequence[Any]) -> Any:
    axes = attribute(node, "axes")
    if axes is None and len(inputs) > 1 and inputs[1] is not None:
        axes = inputs[1].tolist()
    if not axes:
        return None
    keep = bool(attribute(node, "keepdims", 1))
    if node.op_type == "ReduceMean":
        return inputs[0].mean(tuple(axes), keep)
    return (inputs[0].amin if node.op_type == "ReduceMin" else inputs[0].amax)(tuple(axes), keep)


def _flatten(node: NodeProto, inputs: Sequence[Any]) -> Any:
    axis = int(attribute(node, "axis", 1))
    return inputs[0].flatten(axis) if axis == 1 else None


def _axes_of(node: NodeProto, inputs: Sequence[Any]) -> list[int] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(item) for item in inputs[1].reshape(-1).tolist()]
    return None


def _slice(node: NodeProto, inputs: Sequence[Any]) -> Any:
    """Take a range along one axis with step 1, the only kind that the canonical graphs hold."""
    starts, ends = inputs[1].reshape(-1).tolist(), inputs[2].reshape(-1).tolist()
    axes = inputs[3].reshape(-1).tolist() if len(inputs) > 3 and inputs[3] is not None else [0]
    steps = inputs[4].reshape(-1).tolist() if len(inputs) > 4 and inputs[4] is not None else [1]
    if len(starts) != 1 or steps != [1] or len(axes) != 1:
        return None
    size = inputs[0].shape[int(axes[0])]
    start, end, _ = slice(int(starts[0]), int(ends[0])).indices(size)
    return inputs[0].narrow(int(axes[0]), start, max(end - start, 0))


def _squeeze(node: NodeProto, inputs: Sequence[Any]) -> Any:
    axes = _axes_of(node, inputs)
    return None if axes is None else inputs[0].squeeze(tuple(axes))


def _unsqueeze(node: NodeProto, inputs: Sequence[Any]) -> Any:
    value, axes = inputs[0], _axes_of(node, inputs)
    if axes is None:
        return None
    for axis in sorted(axis % (value.ndim + len(axes)) for axis in axes):
        value = value.unsqueeze(axis)
    return value


def _hard_sigmoid(node: NodeProto, inputs: Sequence[Any]) -> Any:
    alpha, beta = float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))
    return torch.clamp(inputs[0] * alpha + beta, 0.0, 1.0)


def _reduce_by_sum(node: NodeProto, inputs: Sequence[Any]) -> Any:
    axes = _axes_of(node, inputs) or attribute(node, "axes")
    if not axes:
        return None
    keep = bool(attribute(node, "keepdims", 1))
    value = inputs[0]
    if node.op_type == "ReduceSum":
        return value.sum(tuple(axes), keep)
    if node.op_type == "ReduceL1":
        return value.abs().sum(tuple(axes), keep)
    squares = value.square().sum(tuple(axes), keep)
    return squares if node.op_type == "ReduceSumSquare" else squares.sqrt()


def _prelu(node: NodeProto, inputs: Sequence[Any]) -> Any:
    return torch.where(inputs[0] < 0, inputs[0] * inputs[1], inputs[0])


def _selu(node: NodeProto, inputs: Sequence[Any]) -> Any:
    alpha, gamma = (
        float(attribute(node, "alpha", 1.6732632423543772)),
        float(attribute(node, "gamma", 1.0507009873554805)),
    )
    return gamma * F.elu(inputs[0], alpha)


def _gelu(node: NodeProto, inputs: Sequence[Any]) -> Any:
    return F.gelu(inputs[0], approximate=attribute(node, "approximate", "none"))


def _split(node: NodeProto, inputs: Sequence[Any]) -> Any:
    axis = int(attribute(node, "axis", 0))
    if len(inputs) > 1 and inputs[1] is not None:
        return list(inputs[0].split([int(size) for size in inputs[1].tolist()], axis))
    return list(inputs[0].split(-(-inputs[0].shape[axis] // len(node.output)), axis))


def _gather(node: NodeProto, inputs: Sequence[Any]) -> Any:
    axis = int(attribute(node, "axis", 0)) % inputs[0].ndim
    return inputs[0][(slice(None),) * axis + (inputs[1].long(),)]


def _expand(node: NodeProto, inputs: Sequence[Any]) -> Any:
    shape = [int(size) for size in inputs[1].tolist()]
    return inputs[0].expand(np.broadcast_shapes(tuple(inputs[0].shape), tuple(shape)))


def _cast(node: NodeProto, inputs: Sequence[Any]) -> Any:
    kind = helper.tensor_dtype_to_np_dtype(int(attribute(node, "to"))).name
    dtype = getattr(torch, kind, None)
    return inputs[0].to(dtype) if isinstance(dtype, torch.dtype) else None


def _of_all(combine: Any) -> Operation:
    return lambda node, inputs: functools.reduce(combine, inputs)


OPERATIONS: dict[str, Operation] = {
    **LAYERS,
    "Abs": lambda node, x: torch.abs(x[0]),
    "Add": lambda node, x: x[0] + x[1],
    "Cast": _cast,
    "Ceil": lambda node, x: torch.ceil(x[0]),
    "Celu": lambda node, x: F.celu(x[0], float(attribute(node, "alpha", 1.0))),
    "Clip": _clip,
    "Concat": lambda node, x: torch.cat(list(x), int(attribute(node, "axis"))),
    "Cos": lambda node, x: torch.cos(x[0]),
    "Div": lambda node, x: x[0] / x[1],
    "Einsum": lambda node, x: torch.einsum(attribute(node, "equation"), *x),
    "Elu": lambda node, x: F.elu(x[0], float(attribute(node, "alpha", 1.0))),
    "Equal": lambda node, x: x[0] == x[1],
    "Erf": lambda node, x: torch.erf(x[0]),
    "Exp": lambda node, x: torch.exp(x[0]),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": lambda node, x: torch.floor(x[0]),
    "Gather": _gather,
    "Gelu": _gelu,
    "Greater": lambda node, x: x[0] > x[1],
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node, x: F.hardswish(x[0]),
    "Identity": lambda node, x: x[0],
    "LeakyRelu": lambda node, x: F.leaky_relu(x[0], float(attribute(node, "alpha", 0.01))),
    "Less": lambda node, x: x[0] < x[1],
    "Log": lambda node, x: torch.log(x[0]),
    "LogSoftmax": lambda node, x: torch.log_softmax(x[0], int(attribute(node, "axis", -1))),
    "Max": _of_all(torch.maximum),
    "Mean": lambda node, x: functools.reduce(torch.add, x) / len(x),
    "Min": _of_all(torch.minimum),
    "Mish": lambda node, x: F.mish(x[0]),
    "Mul": lambda node, x: x[0] * x[1],
    "Neg": lambda node, x: -x[0],
    "PRelu": _prelu,
    "Pow": lambda node, x: torch.pow(x[0], x[1]),
    "Reciprocal": lambda node, x: torch.reciprocal(x[0]),
    "ReduceL1": _reduce_by_sum,
    "ReduceL2": _reduce_by_sum,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceSum": _reduce_by_sum,
    "ReduceSumSquare": _reduce_by_sum,
    "Relu": lambda node, x: F.relu(x[0]),
    "Round": lambda node, x: torch.round(x[0]),
    "Selu": _selu,
    "Sigmoid": lambda node, x: torch.sigmoid(x[0]),
    "Sign": lambda node, x: torch.sign(x[0]),
    "Sin": lambda node, x: torch.sin(x[0]),
    "Slice": _slice,
    "Softmax": lambda node, x: torch.softmax(x[0], int(attribute(node, "axis", -1))),
    "Softplus": lambda node, x: F.softplus(x[0]),
    "Softsign": lambda node, x: F.softsign(x[0]),
    "Split": _split,
    "Sqrt": lambda node, x: torch.sqrt(x[0]),
    "Squeeze": _squeeze,
    "Sub": lambda node, x: x[0] - x[1],
    "Sum": _of_all(torch.add),
    "Swish": lambda node, x: x[0] * torch.sigmoid(float(attribute(node, "alpha", 1.0)) * x[0]),
    "Tanh": lambda node, x: torch.tanh(x[0]),
    "ThresholdedRelu": lambda node, x: torch.where(x[0] > float(attribute(node, "alpha", 1.0)), x[0], 0.0),
    "Transpose": lambda node, x: x[0].permute(tuple(attribute(node, "perm", range(x[0].ndim)[::-1]))),
    "Unsqueeze": _unsqueeze,
    "Where": lambda node, x: torch.where(x[0], x[1], x[2]),
}
"""By operator. What is not here, or says None, is computed elsewhere, and stops a gradient."""
