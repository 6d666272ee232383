"""Convolutions and matrix products of whole numbers, exact, by the float units of the processor.

A product of matrices of whole numbers is exact in float32 as long as no partial sum can pass 2**24, in
whatever order it is summed, and in float64 up to 2**53. The bound follows from the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import ModelError

__all__ = ["Window", "convolve", "exact_dtype", "matmul_pairs", "pad_map", "patches", "windows"]

Array = NDArray[Any]
Window = tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]]
"""Kernel, strides, pads (top, left, bottom, right) and dilations, of two dimensions each."""

_INT16_LOW, _INT16_HIGH = -(2**15), 2**15 - 1
_LARGEST_PRODUCT = 255


def exact_dtype(bound: float) -> type[np.floating[Any]]:
    """Return the float type in which sums of whole numbers up to `bound` are exact.

    Raises:
        ModelError: If there is none.
    """
    if bound < 2**24:
        return np.float32
    if bound < 2**53:
        return np.float64
    raise ModelError("An accumulator may pass 2**53: no integer kernel holds that. Check the weights.")


def pad_map(x: Array, pads: Sequence[int], value: float = 0.0) -> Array:
    """Pad a map (N, C, H, W) with `value`."""
    if not any(pads):
        return x
    top, left, bottom, right = pads
    n, c, h, w = x.shape
    padded = np.full((n, c, h + top + bottom, w + left + right), value, x.dtype)
    padded[:, :, top : top + h, left : left + w] = x
    return padded


def windows(x: Array, window: Window, value: float = 0.0) -> list[Array]:
    """Return one strided view of the padded map (N, C, OH, OW) for each place of the kernel."""
    kernel, strides, pads, dilations = window
    padded = pad_map(x, pads, value)
    sizes = [(padded.shape[2 + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(2)]
    if min(sizes) < 1:
        raise ModelError(
            f"A kernel of {tuple(kernel)} does not fit a map of {x.shape[2:]} with pads {tuple(pads)}."
        )
    views = []
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            top, left = row * dilations[0], column * dilations[1]
            views.append(
                padded[
                    :,
                    :,
                    top : top + (sizes[0] - 1) * strides[0] + 1 : strides[0],
                    left : left + (sizes[1] - 1) * strides[1] + 1 : strides[1],
                ]
            )
    return views


def patches(x: Array, window: Window, value: float = 0.0) -> tuple[Array, tuple[int, int]]:
    """Return (N, kernel places * C, OH * OW) with channels innermost, and (OH, OW)."""
    views = windows(x, window, value)
    n, c, height, width = views[0].shape
    if len(views) == 1:
        return np.ascontiguousarray(views[0]).reshape(n, c, height * width), (height, width)
    columns = np.empty((n, len(views), c, height, width), x.dtype)
    for place, view in enumerate(views):
        columns[:, place] = view
    return columns.reshape(n, len(views) * c, height * width), (height, width)


def convolve(
    x: Array,
    weight: Array,
    window: Window,
    group: int,
    raw_offset: int | None = None,
    *,
    pairs_across_places: bool = True,
) -> Array:
    """Convolve a map with weights; exact if `x` and `weight` are whole numbers of a fitting float type.

    Args:
        x: (N, C, H, W), zero points already subtracted: padding is 0.
        weight: (O, C / group, KH, KW), same type.
        window: Where the kernel goes.
        group: As in ONNX.
        raw_offset: For the instruction vpmaddubsw, what to add to `x` to get the unsigned bytes that it
            reads; None sums exactly. Depthwise convolutions are computed without that instruction.
        pairs_across_places: Of an odd number of channels, whether the last one of a place of the kernel
            makes a pair with the first one of the next place (ONNX Runtime) or stays alone (oneDNN).

    Returns:
        (N, O, OH, OW).
    """
    outputs, inputs = weight.shape[:2]
    if inputs == 1 and group == x.shape[1] and group > 1:
        return _depthwise(x, weight, window, outputs // group)
    parts = []
    for index in range(group):
        piece = x[:, index * inputs : (index + 1) * inputs] if group > 1 else x
        kernels: Array = weight[index * (outputs // group) : (index + 1) * (outputs // group)]
        # (O, KH, KW, C): channels innermost, in the order in which integer kernels walk.
        matrix = np.ascontiguousarray(kernels.transpose(0, 2, 3, 1)).reshape(len(kernels), -1)
        columns, size = patches(piece, window)
        total = np.matmul(matrix, columns)
        if raw_offset is not None:
            if inputs % 2 and not pairs_across_places:
                matrix, columns = _pad_places(matrix, columns, inputs, raw_offset)
            total = total - _excess(matrix, columns, raw_offset)
        parts.append(total.reshape(len(x), len(kernels), *size))
    return parts[0] if group == 1 else np.concatenate(parts, axis=1)


def _pad_places(matrix: Array, columns: Array, channels: int, raw_offset: int) -> tuple[Array, Array]:
    """Give every place of the kernel one more channel, whose weights and bytes are 0."""
    weights = matrix.reshape(len(matrix), -1, channels)
    values = columns.reshape(len(columns), -1, channels, columns.shape[2])
    weights = np.pad(weights, ((0, 0), (0, 0), (0, 1)))
    values = np.pad(values, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=-raw_offset)
    return weights.reshape(len(matrix), -1), values.reshape(len(columns), -1, columns.shape[2])


def _depthwise(x: Array, weight: Array, window: Window, multiplier: int) -> Array:
    source = np.repeat(x, multiplier, axis=1) if multiplier > 1 else x
    taps = weight.reshape(len(weight), -1)
    views = windows(source, window)
    total: Array = views[0] * taps[:, 0, None, None]
    product = np.empty_like(total)
    for place, view in enumerate(views[1:], start=1):
        np.multiply(view, taps[:, place, None, None], out=product)
        total += product
    return total


def matmul_pairs(rows: Array, columns: Array, raw_offset: int | None) -> Array:
    """Return ``rows @ columns`` for weights `columns` (K, M), with pairs saturating unless exact."""
    total: Array = np.matmul(rows, columns)
    if raw_offset is None:
        return total
    shape = total.shape
    flat = rows.reshape(-1, rows.shape[-1]).T[None]
    return np.asarray(total - _excess(columns.T, flat, raw_offset)[0].T.reshape(shape))


def _excess(matrix: Array, columns: Array, raw_offset: int) -> Array:
    """Return what saturating sums of two products lose, (N, O, M).

    Only pairs of weights of one sign that sum to more than 128 can reach past 16 bits, so only those are
    looked at.

    Args:
        matrix: Weights (O, K).
        columns: (N, K, M), zero points subtracted.
        raw_offset: Added to get the unsigned bytes.
    """
    if matrix.shape[1] % 2:
        matrix = np.pad(matrix, ((0, 0), (0, 1)))
        columns = np.pad(columns, ((0, 0), (0, 1), (0, 0)), constant_values=-raw_offset)
    first, second = matrix[:, 0::2], matrix[:, 1::2]
    risky = _LARGEST_PRODUCT * (np.maximum(first, 0) + np.maximum(second, 0)) > _INT16_HIGH
    risky |= _LARGEST_PRODUCT * (np.minimum(first, 0) + np.minimum(second, 0)) < _INT16_LOW
    lost = np.zeros((len(columns), len(matrix), columns.shape[2]), np.float64)
    for pair in np.flatnonzero(risky.any(axis=0)):
        rows = np.flatnonzero(risky[:, pair])
        raw = columns[:, 2 * pair : 2 * pair + 2].astype(np.float64) + raw_offset
        sums = first[rows, pair, None] * raw[:, None, 0] + second[rows, pair, None] * raw[:, None, 1]
        lost[:, rows] += sums - np.clip(sums, _INT16_LOW, _INT16_HIGH)
    return lost
