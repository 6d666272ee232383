"""Weights that round to their second nearest integer: how a plan holds them, and what they do to a graph.

A plan's constants are rounded where they are needed, by simulation, export and training alike. So that none of them has
to know, a weight that is to round the other way moves to that side of the middle between its two integers, and stays as
near to its own value as that allows.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import ModelError
from edgeattn.onnx_graph import Graph, attribute
from edgeattn.quant.plan import WEIGHT_LIMIT, QuantPlan, quantize_weight

__all__ = ["apply_roundings", "channel_axis", "pack_rounding", "second_nearest"]

_FROM_INTEGER = 0.49
"""Steps between a moved weight and its integer: far enough from the middle that float32 cannot round it back."""


def second_nearest(weight: NDArray[Any], scales: NDArray[Any], axis: int = 0) -> NDArray[np.int8]:
    """Return the integers in [-127, 127] on the other side of each weight; the nearest ones beyond that range.

    Args:
        weight: Float, any shape.
        scales: Of the output channels.
        axis: Of the output channels.
    """
    shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
    steps = weight.astype(np.float64) / np.asarray(scales, np.float64).reshape(shape)
    nearest = quantize_weight(weight, scales, axis).astype(np.int64)
    other = nearest + np.where(steps >= nearest, 1, -1)
    return np.clip(other, -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)


def pack_rounding(mask: NDArray[np.bool_]) -> str:
    """Return which weights round to their second nearest integer, as a plan holds it: eight to a byte, in base64."""
    return base64.b64encode(np.packbits(mask).tobytes()).decode("ascii")


def apply_roundings(graph: Graph, plan: QuantPlan) -> None:
    """Move the weights that a plan rounds the other way, in place: by less than a step of their grid.

    Args:
        graph: The canonical fp32 graph, its channels scaled as the plan says.
        plan: Its scales are those that the roundings were learned with.

    Raises:
        ModelError: If the plan does not fit the graph.
    """
    for name, text in plan.roundings.items():
        weight, scales = graph.constants.get(name), plan.weights.get(name)
        mask = None if weight is None else _unpacked(text, weight.shape)
        if weight is None or mask is None or scales is None:
            raise ModelError(
                f"The plan rounds the values of a weight {name!r} that the graph lacks or holds in another size. "
                "A plan belongs to one graph: calibrate this one."
            )
        axis = channel_axis(graph, name)
        steps = np.asarray(scales, np.float32)
        nearest = quantize_weight(weight, steps, axis).astype(np.float64)
        other = second_nearest(weight, steps, axis).astype(np.float64)
        shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
        moved = (other + _FROM_INTEGER * (nearest - other)) * steps.astype(np.float64).reshape(shape)
        graph.constants[name] = np.where(mask, moved, weight).astype(np.float32)


def channel_axis(graph: Graph, name: str) -> int:
    """Return the axis of a weight's output channels, as the layer that reads it has them."""
    user = graph.consumers[name][0]
    if user.op_type == "Gemm":
        return 0 if attribute(user, "transB", 0) else 1
    return 1 if user.op_type == "MatMul" else 0


def _unpacked(text: str, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """Return the mask that `pack_rounding` packed; None where it has another size."""
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (binascii.Error, ValueError):
        return None
    count = int(np.prod(shape))
    if len(packed) != -(-count // 8):
        return None
    return np.unpackbits(packed, count=count).astype(np.bool_).reshape(shape)
