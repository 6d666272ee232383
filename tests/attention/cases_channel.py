"""Cases of the channel mechanisms. Oracles: NumPy, loops over positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from attention_case import Array, Case, Weights, matrix, sigmoid

__all__ = ["CASES"]


def se(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    first, first_bias = matrix(w, "fc1")
    second, second_bias = matrix(w, "fc2")
    hidden = np.maximum(x.mean(axis=(2, 3)) @ first.T + first_bias, 0.0)
    return x * sigmoid(hidden @ second.T + second_bias)[:, :, None, None]


def eca(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    taps = w["conv.weight"].reshape(-1)
    pooled = x.mean(axis=(2, 3))
    n, channels = pooled.shape
    z = np.zeros_like(pooled)
    for c in range(channels):
        for t, tap in enumerate(taps):
            neighbour = c + t - len(taps) // 2
            if 0 <= neighbour < channels:
                z[:, c] += tap * pooled[:, neighbour]
    return x * sigmoid(z).reshape(n, channels, 1, 1)


CASES: dict[str, Case] = {
    "se": Case(
        se,
        variants=(
            {},
            {"gate": "hard_sigmoid", "activation": "h_swish"},
            {"squeeze_channels": 3, "activation": "swish"},
        ),
        beyond_oracle=(1, 2),
        bad=(
            (8, {"gate": "hard_sigmod"}, "Did you mean 'hard_sigmoid'"),
            (8, {"squeeze_channels": 0}, "squeeze_channels must be positive"),
        ),
    ),
    "eca": Case(
        eca,
        variants=({}, {"kernel_size": 1}, {"kernel_size": 9}),
        bad=(
            (8, {"kernel_size": 4}, "must be odd"),
            (8, {"kernel_size": True}, "positive odd number, got True"),
        ),
    ),
}
