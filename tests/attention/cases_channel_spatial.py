"""Cases of the mechanisms over channels and space. Oracles: NumPy, loops over positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from attention_case import Array, Case, Weights, matrix, norm, sigmoid

__all__ = ["CASES"]


def coord(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    first, first_bias = matrix(w, "conv1")
    of_height, height_bias = matrix(w, "conv2")
    of_width, width_bias = matrix(w, "conv3")

    def squeeze(vector: Array) -> Array:  # (N, C) -> (N, M)
        z = norm(vector @ first.T + first_bias, w, "bn1")
        return z * np.clip(z + 3.0, 0.0, 6.0) / 6.0

    out = np.empty_like(x)
    for i in range(x.shape[2]):
        a_h = sigmoid(squeeze(x[:, :, i, :].mean(axis=-1)) @ of_height.T + height_bias)
        for j in range(x.shape[3]):
            a_w = sigmoid(squeeze(x[:, :, :, j].mean(axis=-1)) @ of_width.T + width_bias)
            out[:, :, i, j] = x[:, :, i, j] * a_h * a_w
    return out


def _plane_gate(first: Array, second: Array, w: Weights, key: str) -> Array:
    """Gate of a plane: two inputs (N, A, B), k x k convolution with zero padding, norm, sigmoid."""
    kernel = w[f"{key}.conv.weight"][0]  # (2, k, k)
    k = kernel.shape[-1]
    n, rows, columns = first.shape
    z = np.zeros((n, 1, rows, columns))
    for a in range(rows):
        for b in range(columns):
            for r in range(k):
                for s in range(k):
                    i, j = a + r - k // 2, b + s - k // 2
                    if 0 <= i < rows and 0 <= j < columns:
                        z[:, 0, a, b] += kernel[0, r, s] * first[:, i, j] + kernel[1, r, s] * second[:, i, j]
    return sigmoid(norm(z, w, f"{key}.bn"))[:, 0]


def triplet(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    cw = _plane_gate(x.max(axis=2), x.mean(axis=2), w, "cw.conv")  # (N, C, W)
    transposed = x.transpose(0, 2, 1, 3)  # (N, H, C, W)
    hc = _plane_gate(transposed.max(axis=3), transposed.mean(axis=3), w, "hc.conv")  # (N, H, C)
    products = x * cw[:, :, None, :] + x * hc.transpose(0, 2, 1)[:, :, :, None]
    if "hw.conv.conv.weight" not in w:
        return products / 2.0
    hw = _plane_gate(x.max(axis=1), x.mean(axis=1), w, "hw.conv")  # (N, H, W)
    return (products + x * hw[:, None]) / 3.0


def cbam(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    first, first_bias = matrix(w, "ChannelGate.mlp.1")
    second, second_bias = matrix(w, "ChannelGate.mlp.3")

    def mlp(vector: Array) -> Array:
        return np.maximum(vector @ first.T + first_bias, 0.0) @ second.T + second_bias

    y = x * sigmoid(mlp(x.mean(axis=(2, 3))) + mlp(x.max(axis=(2, 3))))[:, :, None, None]
    return y * _plane_gate(y.max(axis=1), y.mean(axis=1), w, "SpatialGate.spatial")[:, None]


CASES: dict[str, Case] = {
    "cbam": Case(
        cbam,
        variants=({}, {"kernel_size": 3, "reduction": 4}),
        # With one squeezed channel, the ReLU is often shut and its gradient zero for good reason.
        trained_options={"reduction": 2},
        bad=((8, {"reduction": -1}, "reduction must be positive"),),
        operations=frozenset({"Transpose"}),  # of pooled planes
    ),
    "triplet": Case(
        triplet,
        variants=({}, {"kernel_size": 3}, {"no_spatial": True}),
        bad=((8, {"kernel_size": 0}, "positive odd number, got 0"),),
        operations=frozenset({"Transpose"}),
        channels=20,  # more than six times the width or height of some sizes: those planes are turned
        sizes=((5, 6), (3, 4), (2, 3), (7, 2), (3, 9)),
    ),
    "coord": Case(
        coord,
        variants=({}, {"reduction": 1}),
        bad=((8, {"reduction": 0}, "reduction must be positive"),),
    ),
}
