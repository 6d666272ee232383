"""Cases of the channel mechanisms. Oracles: NumPy, loops over positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from attention_case import Array, Case, Weights, convolve, matrix, norm, sigmoid

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


def gsop(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    reduced = np.einsum("oc,nchw->nohw", matrix(w, "reduce")[0], x)
    z = np.maximum(norm(reduced, w, "reduce_bn"), 0.0)
    n, rows = z.shape[:2]
    covariance = np.empty((n, rows, rows, 1))
    for b in range(n):
        covariance[b, :, :, 0] = np.cov(z[b].reshape(rows, -1), bias=True)
    covariance = norm(covariance, w, "row_bn")
    kernel, bias = w["row_conv.weight"], w["row_conv.bias"]  # (4 c', 1, c', 1)
    four = np.zeros((n, 4 * rows))
    for o in range(4 * rows):
        four[:, o] = covariance[:, o // 4, :, 0] @ kernel[o, 0, :, 0] + bias[o]
    expand, expand_bias = matrix(w, "expand")
    return x * sigmoid(four @ expand.T + expand_bias)[:, :, None, None]


def srm(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    n, channels = x.shape[:2]
    z = np.zeros((n, channels, 1, 1))
    for c in range(channels):
        mean = x[:, c].mean(axis=(1, 2))
        deviation = np.sqrt(x[:, c].var(axis=(1, 2)) + 1e-5)
        of_mean, of_deviation = w["cfc.weight"][c, 0, 0]
        z[:, c, 0, 0] = of_mean * mean + of_deviation * deviation
    return x * sigmoid(norm(z, w, "bn"))


def gct(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    alpha, gamma, beta = (w[key].reshape(-1) for key in ("alpha", "gamma", "beta"))
    s = alpha * np.sqrt((x**2).sum(axis=(2, 3)) + 1e-5)
    s_hat = s / np.sqrt((s**2).mean(axis=1, keepdims=True) + 1e-5)
    return x * (1.0 + np.tanh(gamma * s_hat + beta))[:, :, None, None]


_BEST = [(0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0)]


def fca(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    n, channels, height, width = x.shape
    count = options.get("frequencies") or next(k for k in (16, 8, 4, 2, 1) if channels % k == 0)
    coefficients = np.zeros((n, channels))
    for c in range(channels):
        u, v = _BEST[c // (channels // count)]
        for i in range(height):
            for j in range(width):
                basis = np.cos(np.pi * u * (i + 0.5) / height) * np.cos(np.pi * v * (j + 0.5) / width)
                coefficients[:, c] += x[:, c, i, j] * basis / (height * width)
    hidden = np.maximum(coefficients @ matrix(w, "fc1")[0].T, 0.0)
    return x * sigmoid(hidden @ matrix(w, "fc2")[0].T)[:, :, None, None]


def enc(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    n, channels, height, width = x.shape
    codewords, scale = w["codewords"], w["scale"]
    encoded = np.zeros((n, len(codewords), channels, 1))
    for b in range(n):
        for i in range(height):
            for j in range(width):
                residuals = x[b, :, i, j] - codewords
                logits = scale * (residuals**2).sum(axis=1)
                weights = np.exp(logits - logits.max())
                encoded[b, :, :, 0] += (weights / weights.sum())[:, None] * residuals
    context = np.maximum(norm(encoded, w, "bn"), 0.0).sum(axis=(1, 3))
    weight, bias = matrix(w, "fc")
    return x * sigmoid(context @ weight.T + bias)[:, :, None, None]


def ge(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    extent, variant = options.get("extent", 8), options.get("variant", "theta_plus")
    n, channels, height, width = x.shape
    if extent == "global":
        return x * sigmoid(x.mean(axis=(2, 3), keepdims=True))
    rows, columns = -(-height // extent), -(-width // extent)
    z = np.zeros((n, channels, rows, columns))
    if variant == "theta_minus":
        for i in range(rows):
            for j in range(columns):
                top, left = max(0, i * extent - extent + 1), max(0, j * extent - extent + 1)
                z[:, :, i, j] = x[:, :, top : i * extent + extent, left : j * extent + extent].mean(
                    axis=(2, 3)
                )
    else:
        z, step, steps = x, 0, int(np.log2(extent))
        for step in range(steps):
            kernel = w[f"gather.{step}.conv.weight"]
            z = norm(convolve(z, kernel, stride=2, padding=(1, 1), groups=channels), w, f"gather.{step}.bn")
            z = np.maximum(z, 0.0) if step < steps - 1 else z
        if variant == "theta_plus":
            first, first_bias = matrix(w, "excite.0")
            second, second_bias = matrix(w, "excite.2")
            z = np.maximum(np.einsum("oc,nchw->nohw", first, z) + first_bias[:, None, None], 0.0)
            z = np.einsum("oc,nchw->nohw", second, z) + second_bias[:, None, None]
    out = np.empty_like(x)
    for i in range(height):
        for j in range(width):
            out[:, :, i, j] = x[:, :, i, j] * sigmoid(z[:, :, i * rows // height, j * columns // width])
    return out


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
    "gsop": Case(
        gsop,
        variants=({}, {"covariance_channels": 3}),
        operations=frozenset({"MatMul", "Sub", "Transpose", "BatchNormalization"}),
        bad=((8, {"covariance_channels": 0}, "covariance_channels must be positive"),),
    ),
    "srm": Case(srm, operations=frozenset({"Sub", "Sqrt"})),
    "gct": Case(gct, operations=frozenset({"Sqrt", "Div", "Tanh"})),
    "fca": Case(
        fca,
        variants=({}, {"frequencies": 6}),
        bad=(
            (8, {"frequencies": 3}, "divide the 8 channels, got 3"),
            (34, {"frequencies": 17}, "at most 16"),
            (8, {"reduction": 0}, "reduction must be positive"),
        ),
    ),
    "enc": Case(
        enc,
        variants=({}, {"codewords": 3}),
        operations=frozenset(
            {"MatMul", "Sub", "Softmax", "Transpose", "ReduceSum", "BatchNormalization", "Unsqueeze"}
        ),
        bad=((8, {"codewords": 0}, "codewords must be positive"),),
    ),
    "ge": Case(
        ge,
        variants=({}, {"extent": 2, "variant": "theta"}, {"extent": 4}),
        operations=frozenset({"Resize", "Shape"}),
        bad=(
            (8, {"extent": 3}, "power of two"),
            (8, {"extent": "global"}, "'theta_minus' alone"),
            (8, {"variant": "theta_mins"}, "Did you mean 'theta_minus'"),
        ),
    ),
}
