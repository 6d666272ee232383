"""Sums of two products in 16 bits: what x86 without VNNI makes of an INT8 network, and weights that bear it.

Such processors multiply unsigned activations with signed weights and add the products in pairs with the
instruction vpmaddubsw, whose result saturates at 16 bits: 255 * 127 + 255 * 127 = 64,770 becomes 32,767.
MobileNetV2's public INT8 figures are 65.8 % with VNNI and 58.6 % without.

Two weights of one sign whose sizes add up to at most 128 cannot reach that far (255 * 128 = 32,640), and two
of opposite signs never do. Depthwise convolutions are computed without that instruction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.quant.plan import quantize_weight

__all__ = ["LARGEST_SAFE_PAIR", "pair_safe_scales", "pair_weights", "with_safe_pairs", "worst_pairs"]

LARGEST_SAFE_PAIR = 128
"""Largest sum of the sizes of two weights of one sign that cannot saturate, whatever the activations."""

_STEP = 1.002


def pair_weights(integers: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the two weights of every sum of two products, and the input channel of the first.

    Pairs are neighbours along the channels. Of an odd number of channels the last one meets the first of the
    next place of the kernel in ONNX Runtime and stays alone in oneDNN; both are listed.

    Args:
        integers: (O, C, KH, KW) of a convolution or (O, C) of a matrix product.

    Returns:
        Two arrays (O, pairs); and (2, pairs), the input channels of the two, -1 for none.
    """
    outputs, channels = integers.shape[:2]
    places = integers.reshape(outputs, channels, -1).transpose(0, 2, 1).astype(np.int64)
    number = np.broadcast_to(np.arange(channels), places.shape[1:])
    flat, flat_number = places.reshape(outputs, -1), number.reshape(-1)
    found = [_neighbours(flat, flat_number)]
    if channels % 2 and places.shape[1] > 1:
        padded = np.pad(places, ((0, 0), (0, 0), (0, 1))).reshape(outputs, -1)
        numbers = np.pad(number, ((0, 0), (0, 1)), constant_values=-1).reshape(-1)
        found.append(_neighbours(padded, numbers))
    first, second, sources = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return first, second, sources


def _neighbours(
    flat: NDArray[np.int64], numbers: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    if flat.shape[1] % 2:
        flat = np.pad(flat, ((0, 0), (0, 1)))
        numbers = np.pad(numbers, (0, 1), constant_values=-1)
    return flat[:, 0::2], flat[:, 1::2], np.stack([numbers[0::2], numbers[1::2]])


def worst_pairs(integers: NDArray[Any]) -> NDArray[np.int64]:
    """Return the largest sum of the sizes of two paired weights of one sign, for each output channel."""
    first, second, _ = pair_weights(integers)
    together = np.where(first * second > 0, np.abs(first + second), 0)
    return np.asarray(together.max(axis=1, initial=0), np.int64)


def pair_safe_scales(weight: NDArray[Any], scales: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """Return scales with which no sum of two products can saturate: coarser where needed, and only there.

    Args:
        weight: Float, (O, C, KH, KW), or a matrix with output channels along `axis`.
        scales: One for each output channel.
        axis: Of the output channels.

    Returns:
        The scales; unchanged for channels that are safe already, and for depthwise convolutions.
    """
    result: NDArray[np.float64] = np.asarray(scales, np.float64).copy()
    if weight.ndim == 4 and weight.shape[1] == 1:
        return result
    rows = np.moveaxis(weight, axis, 0)
    waiting = np.arange(len(rows))
    while waiting.size:
        worst = worst_pairs(quantize_weight(rows[waiting], result[waiting]))
        unsafe = worst > LARGEST_SAFE_PAIR
        waiting = waiting[unsafe]
        # Rounding may leave a pair one above: then a little coarser still.
        result[waiting] *= np.maximum(worst[unsafe] / LARGEST_SAFE_PAIR, 1.0) * _STEP
    return result


def with_safe_pairs(integers: NDArray[np.int8], safe: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return `integers`, those of `safe` back wherever a sum of two products could saturate.

    Args:
        integers: (O, C, KH, KW) of a convolution or (O, C) of a matrix product.
        safe: As `integers`, of which no pair saturates.
    """
    result: NDArray[np.int8] = integers.copy()
    if integers.ndim == 4 and integers.shape[1] == 1:
        return result
    # From 1 on: 0 is what stands beside a weight that has no neighbour.
    first, second, _ = pair_weights(np.arange(1, integers.size + 1).reshape(integers.shape))
    while True:
        flat = np.concatenate([[0], result.reshape(-1).astype(np.int64)])
        one, other = flat[first], flat[second]
        unsafe = (one * other > 0) & (np.abs(one + other) > LARGEST_SAFE_PAIR)
        places = np.unique(np.concatenate([first[unsafe], second[unsafe]]))
        places = places[places > 0] - 1
        changed = result.reshape(-1)[places] != safe.reshape(-1)[places]
        if not changed.any():
            return result
        result.reshape(-1)[places] = safe.reshape(-1)[places]
