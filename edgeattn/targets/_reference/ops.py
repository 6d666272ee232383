"""Operations on arrays, as ONNX defines them: what networks made and lowered here consist of.

Those that only move, choose or average values work on steps of any type; the others on floats. Whatever is
not here runs in ONNX's own reference evaluator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from edgeattn.errors import ModelError
from edgeattn.onnx_graph import attribute
from edgeattn.onnx_node import same_pads
from edgeattn.targets._reference.integer import Window, pad_map, windows

__all__ = ["AVERAGING", "FLOAT", "MOVING", "as_map", "fallback", "from_map", "reduced_axes", "window_of"]

Array = NDArray[Any]
Operation = Callable[[NodeProto, Sequence[Array]], list[Array]]


def window_of(node: NodeProto, kernel: Sequence[int], size: Sequence[int]) -> Window:
    """Return where a kernel goes on a map of `size`; that of a sequence is one row high, see `as_map`.

    Raises:
        ModelError: If the map has other than one or two dimensions.
    """
    if len(kernel) != len(size) or len(size) not in (1, 2):
        raise ModelError(
            f"{node.name or node.op_type!r} works on {len(size)} dimensions; the reference knows one and two."
        )
    strides = list(attribute(node, "strides", [1] * len(size)))
    dilations = list(attribute(node, "dilations", [1] * len(size)))
    pads = list(attribute(node, "pads", [0] * 2 * len(size)))
    if len(size) == 1:
        kernel, size, strides, dilations = [1, *kernel], [1, *size], [1, *strides], [1, *dilations]
        pads = [0, pads[0], 0, pads[1]]
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = same_pads(auto, size, kernel, strides, dilations)
    elif auto == "VALID":
        pads = [0, 0, 0, 0]
    return list(kernel), strides, pads, dilations


def as_map(x: Array) -> Array:
    """Return a sequence (N, C, L) as a map of one row (N, C, 1, L); a map as it is."""
    return x[:, :, np.newaxis] if x.ndim == 3 else x


def from_map(result: Array, rank: int) -> Array:
    """Undo `as_map` for what was computed of a tensor of `rank` dimensions."""
    return result[:, :, 0] if rank == 3 else result


# ------------------------------------------------------------------------------- moving values


def _reshape(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    x, shape = inputs[0], [int(n) for n in inputs[1]]
    if not attribute(node, "allowzero", 0):
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return [x.reshape(shape)]


def _transpose(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    return [np.ascontiguousarray(np.transpose(inputs[0], attribute(node, "perm", None)))]


def _flatten(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    axis = attribute(node, "axis", 1) % (inputs[0].ndim + 1)
    return [inputs[0].reshape(int(np.prod(inputs[0].shape[:axis], dtype=np.int64)), -1)]


def _axes(node: NodeProto, inputs: Sequence[Array]) -> tuple[int, ...] | None:
    axes = inputs[1] if len(inputs) > 1 else attribute(node, "axes", None)
    return None if axes is None else tuple(int(axis) for axis in axes)


def _squeeze(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    return [np.squeeze(inputs[0], _axes(node, inputs))]


def _unsqueeze(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    return [np.expand_dims(inputs[0], _axes(node, inputs) or ())]


def _expand(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    shape = tuple(int(n) for n in inputs[1])
    whole = np.broadcast_shapes(inputs[0].shape, shape)
    return [np.ascontiguousarray(np.broadcast_to(inputs[0], whole))]


def _slice(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    x, starts, ends = inputs[0], inputs[1], inputs[2]
    axes = inputs[3] if len(inputs) > 3 else np.arange(len(starts))
    steps = inputs[4] if len(inputs) > 4 else np.ones(len(starts), np.int64)
    where = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end < -x.shape[int(axis)] else int(end)
        where[int(axis)] = slice(int(start), stop, int(step))
    return [np.ascontiguousarray(x[tuple(where)])]


def _split(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    axis, count = attribute(node, "axis", 0), len(node.output)
    if len(inputs) > 1:
        sizes = [int(n) for n in inputs[1]]
    else:
        part = -(-inputs[0].shape[axis] // count)
        sizes = [part] * (count - 1) + [inputs[0].shape[axis] - part * (count - 1)]
    return [np.ascontiguousarray(part) for part in np.split(inputs[0], np.cumsum(sizes)[:-1], axis)]


def _concat(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    return [np.concatenate(inputs, attribute(node, "axis"))]


def _max_pool(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    x, (window, _) = as_map(inputs[0]), _pool_window(node, inputs[0])
    lowest = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
    first, *others = windows(x, window, lowest)
    result = first.copy()
    for view in others:
        np.maximum(result, view, out=result)
    return [from_map(result, inputs[0].ndim)]


def reduced_axes(node: NodeProto, inputs: Sequence[Array]) -> tuple[tuple[int, ...], bool]:
    """Return the axes that a reduction removes, and whether they stay with size 1."""
    axes = _axes(node, inputs)
    if not axes:
        axes = (
            () if axes == () and attribute(node, "noop_with_empty_axes", 0) else tuple(range(inputs[0].ndim))
        )
    return axes, bool(attribute(node, "keepdims", 1))


def _reduce_max(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    axes, keep = reduced_axes(node, inputs)
    return [np.asarray(inputs[0].max(axis=axes, keepdims=keep))]


def _global_max(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    return [inputs[0].max(axis=tuple(range(2, inputs[0].ndim)), keepdims=True)]


MOVING: dict[str, Operation] = {
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _flatten,
    "GlobalMaxPool": _global_max,
    "Identity": lambda node, inputs: [inputs[0]],
    "MaxPool": _max_pool,
    "ReduceMax": _reduce_max,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Operations whose results are values of their first input (of all inputs, for Concat)."""

# --------------------------------------------------------------------------- averages and sums


def _pool_window(node: NodeProto, x: Array) -> tuple[Window, list[int]]:
    """Return where a pool's kernel goes on a map, and which of the pads are there for the last window alone.

    With ``ceil_mode`` the last window may leave the padded map, but begins inside of the map or the pad before it.
    """
    kernel, strides, pads, dilations = window_of(node, list(attribute(node, "kernel_shape")), x.shape[2:])
    beyond = [0, 0, 0, 0]
    for dim in range(2) if attribute(node, "ceil_mode", 0) else ():
        spread, size = dilations[dim] * (kernel[dim] - 1) + 1, as_map(x).shape[2 + dim]
        padded = size + pads[dim] + pads[dim + 2]
        last = -(-(padded - spread) // strides[dim]) * strides[dim]
        if last >= size + pads[dim]:
            last -= strides[dim]
        beyond[dim + 2] = max(last + spread - padded, 0)
    return (kernel, strides, [a + b for a, b in zip(pads, beyond, strict=True)], dilations), beyond


def _average_pool(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    x = as_map(inputs[0])
    window, beyond = _pool_window(node, inputs[0])
    kernel, strides, pads, dilations = window
    total = _sum(windows(x, window))
    declared = [pad - more for pad, more in zip(pads, beyond, strict=True)]
    inside = np.ones((1, 1, *x.shape[2:]), x.dtype)
    counted = pad_map(inside, declared, float(attribute(node, "count_include_pad", 0)))
    total /= _sum(windows(counted, (kernel, strides, beyond, dilations)))
    return [from_map(total, inputs[0].ndim)]


def _sum(views: Sequence[Array]) -> Array:
    total: Array = views[0].copy()
    for view in views[1:]:
        total += view
    return total


def _reduce_mean(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    axes, keep = reduced_axes(node, inputs)
    return [np.asarray(inputs[0].mean(axis=axes, keepdims=keep, dtype=np.float64), inputs[0].dtype)]


def _global_mean(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    axes = tuple(range(2, inputs[0].ndim))
    return [np.asarray(inputs[0].mean(axis=axes, keepdims=True, dtype=np.float64), inputs[0].dtype)]


def _reduce_sum(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    axes, keep = reduced_axes(node, inputs)
    return [np.asarray(inputs[0].sum(axis=axes, keepdims=keep, dtype=np.float64), inputs[0].dtype)]


AVERAGING: dict[str, Operation] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_mean,
    "ReduceMean": _reduce_mean,
    "ReduceSum": _reduce_sum,
}
"""Linear operations on one input, which commute with its scale."""

# -------------------------------------------------------------------------------------- floats


def _clip(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    ends: list[Any] = [inputs[i] if len(inputs) > i and inputs[i].size else None for i in (1, 2)]
    low = attribute(node, "min", None) if ends[0] is None else ends[0].reshape(())
    high = attribute(node, "max", None) if ends[1] is None else ends[1].reshape(())
    x = inputs[0]
    if low is not None:
        x = np.maximum(x, np.asarray(low, x.dtype))
    return [x if high is None else np.minimum(x, np.asarray(high, x.dtype))]


def _sigmoid(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    x = inputs[0]
    small = np.exp(-np.abs(x))
    one = x.dtype.type(1)
    return [np.where(x >= 0, one / (one + small), small / (one + small))]


def _hard_sigmoid(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    x = inputs[0]
    alpha, beta = (
        x.dtype.type(attribute(node, name, value)) for name, value in (("alpha", 0.2), ("beta", 0.5))
    )
    return [np.clip(alpha * x + beta, x.dtype.type(0), x.dtype.type(1))]


def _hard_swish(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    x = inputs[0]
    kind = x.dtype.type
    return [x * np.clip(x / kind(6) + kind(0.5), kind(0), kind(1))]


def _softmax(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    axis = attribute(node, "axis", -1)
    shifted = np.exp(inputs[0] - inputs[0].max(axis=axis, keepdims=True))
    return [shifted / shifted.sum(axis=axis, keepdims=True)]


def _grid_sample(node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
    """Sample a map (N, C, H, W) bilinearly at (x, y) in [-1, 1] of a grid (N, h, w, 2); ONNX's own loops in Python."""
    x, grid = inputs
    mode, padding = attribute(node, "mode", "linear"), attribute(node, "padding_mode", "zeros")
    if x.ndim != 4 or mode not in ("bilinear", "linear") or padding not in ("zeros", "border"):
        raise ModelError(
            f"{node.name or node.op_type!r} samples {x.ndim - 2} dimensions by {mode} with {padding}; the reference "
            "knows bilinear samples of two, with zeros or the border outside."
        )
    count, channels, height, width = x.shape
    places = []
    for axis, size in ((0, width), (1, height)):
        place = (grid[..., axis] + 1) * x.dtype.type(0.5)
        place = (
            place * (size - 1) if attribute(node, "align_corners", 0) else place * size - x.dtype.type(0.5)
        )
        places.append(np.clip(place, 0, size - 1) if padding == "border" else place)
    columns, rows = places  # (N, h, w) in pixels
    left, top = np.floor(columns).astype(np.int64), np.floor(rows).astype(np.int64)
    flat = x.reshape(count, channels, height * width)
    result = np.zeros((count, channels, *grid.shape[1:3]), x.dtype)
    for row in (top, top + 1):
        for column in (left, left + 1):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            # A pixel's share falls from 1 to 0 over one pixel in each direction.
            share = (1 - np.abs(rows - row)) * (1 - np.abs(columns - column)) * inside
            at = np.clip(row, 0, height - 1) * width + np.clip(column, 0, width - 1)
            values = np.take_along_axis(flat, at.reshape(count, 1, -1), axis=2)
            result += values.reshape(result.shape) * share[:, None].astype(x.dtype)
    return [result]


FLOAT: dict[str, Operation] = {
    "Add": lambda node, inputs: [inputs[0] + inputs[1]],
    "Clip": _clip,
    "Div": lambda node, inputs: [inputs[0] / inputs[1]],
    "GridSample": _grid_sample,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Mul": lambda node, inputs: [inputs[0] * inputs[1]],
    "Relu": lambda node, inputs: [np.maximum(inputs[0], inputs[0].dtype.type(0))],
    "Sigmoid": _sigmoid,
    "Softmax": _softmax,
    "Sqrt": lambda node, inputs: [np.sqrt(inputs[0])],
    "Sub": lambda node, inputs: [inputs[0] - inputs[1]],
    "Sum": lambda node, inputs: [functools.reduce(np.add, inputs)],
    "Tanh": lambda node, inputs: [np.tanh(inputs[0])],
}
"""Operations on floats, in the type of their inputs."""


def fallback(node: NodeProto, inputs: Sequence[Array], opset: int) -> list[Array]:
    """Run one node in ONNX's reference evaluator.

    Raises:
        ModelError: If that does not know the operator.
    """
    from edgeattn.onnx_node import evaluate_node

    feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
    try:
        return evaluate_node(node, feeds, opset)
    except ModelError as exc:
        raise ModelError(f"{exc} To compare other targets, leave the reference out.") from exc
