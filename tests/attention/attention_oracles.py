"""The mechanisms' formulas from their papers, in NumPy, written independently of the package.

Loops over positions instead of convolutions; evaluation mode. `w` holds a state dict as NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]


def _sigmoid(z: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-z))


def _norm(z: Array, w: Weights, key: str) -> Array:
    """Batch norm of (N, C, ...) in evaluation mode."""
    out = np.empty_like(z)
    for c in range(z.shape[1]):
        deviation = np.sqrt(w[f"{key}.running_var"][c] + 1e-5)
        out[:, c] = (z[:, c] - w[f"{key}.running_mean"][c]) / deviation * w[f"{key}.weight"][c]
        out[:, c] += w[f"{key}.bias"][c]
    return out


def _matrix(w: Weights, key: str) -> tuple[Array, Array]:
    return w[f"{key}.weight"].reshape(w[f"{key}.weight"].shape[0], -1), w[f"{key}.bias"]


def eca(x: Array, w: Weights) -> Array:
    taps = w["conv.weight"].reshape(-1)
    pooled = x.mean(axis=(2, 3))
    n, channels = pooled.shape
    z = np.zeros_like(pooled)
    for c in range(channels):
        for t, tap in enumerate(taps):
            neighbour = c + t - len(taps) // 2
            if 0 <= neighbour < channels:
                z[:, c] += tap * pooled[:, neighbour]
    return x * _sigmoid(z).reshape(n, channels, 1, 1)


def coord(x: Array, w: Weights) -> Array:
    first, first_bias = _matrix(w, "conv1")
    of_height, height_bias = _matrix(w, "conv2")
    of_width, width_bias = _matrix(w, "conv3")

    def squeeze(vector: Array) -> Array:  # (N, C) -> (N, M)
        z = _norm(vector @ first.T + first_bias, w, "bn1")
        return z * np.clip(z + 3.0, 0.0, 6.0) / 6.0

    out = np.empty_like(x)
    for i in range(x.shape[2]):
        a_h = _sigmoid(squeeze(x[:, :, i, :].mean(axis=-1)) @ of_height.T + height_bias)
        for j in range(x.shape[3]):
            a_w = _sigmoid(squeeze(x[:, :, :, j].mean(axis=-1)) @ of_width.T + width_bias)
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
    return _sigmoid(_norm(z, w, f"{key}.bn"))[:, 0]


def triplet(x: Array, w: Weights) -> Array:
    cw = _plane_gate(x.max(axis=2), x.mean(axis=2), w, "cw.conv")  # (N, C, W)
    transposed = x.transpose(0, 2, 1, 3)  # (N, H, C, W)
    hc = _plane_gate(transposed.max(axis=3), transposed.mean(axis=3), w, "hc.conv")  # (N, H, C)
    products = x * cw[:, :, None, :] + x * hc.transpose(0, 2, 1)[:, :, :, None]
    if "hw.conv.conv.weight" not in w:
        return products / 2.0
    hw = _plane_gate(x.max(axis=1), x.mean(axis=1), w, "hw.conv")  # (N, H, W)
    return (products + x * hw[:, None]) / 3.0


def se(x: Array, w: Weights) -> Array:
    first, first_bias = _matrix(w, "fc1")
    second, second_bias = _matrix(w, "fc2")
    hidden = np.maximum(x.mean(axis=(2, 3)) @ first.T + first_bias, 0.0)
    return x * _sigmoid(hidden @ second.T + second_bias)[:, :, None, None]


def cbam(x: Array, w: Weights) -> Array:
    first, first_bias = _matrix(w, "ChannelGate.mlp.1")
    second, second_bias = _matrix(w, "ChannelGate.mlp.3")

    def mlp(vector: Array) -> Array:
        return np.maximum(vector @ first.T + first_bias, 0.0) @ second.T + second_bias

    y = x * _sigmoid(mlp(x.mean(axis=(2, 3))) + mlp(x.max(axis=(2, 3))))[:, :, None, None]
    return y * _plane_gate(y.max(axis=1), y.mean(axis=1), w, "SpatialGate.spatial")[:, None]


ORACLES: dict[str, Callable[[Array, Weights], Array]] = {
    "eca": eca,
    "coord": coord,
    "triplet": triplet,
    "se": se,
    "cbam": cbam,
}
