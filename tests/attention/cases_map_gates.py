"""Cases of more mechanisms over channels and space. Oracles: NumPy, loops over positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from attention_case import Array, Case, Weights, convolve, matrix, norm, sigmoid
from cases_spatial import MATMUL, look, pointwise, softmax

__all__ = ["CASES", "CONVOLUTIONS"]

Options = Mapping[str, Any]


def bam(x: Array, w: Weights, options: Options) -> Array:
    dilation, layers = options.get("dilation", 4), options.get("layers", 2)
    c, s = "channel_att.gate_c.gate_c_", "spatial_att.gate_s.gate_s_"
    first, first_bias = matrix(w, f"{c}fc_0")
    last, last_bias = matrix(w, f"{c}fc_final")
    hidden = norm(x.mean(axis=(2, 3)) @ first.T + first_bias, w, f"{c}bn_1")
    of_channel = np.maximum(hidden, 0.0) @ last.T + last_bias
    y = np.maximum(norm(pointwise(x, w, f"{s}conv_reduce0"), w, f"{s}bn_reduce0"), 0.0)
    for i in range(layers):
        key = f"{s}conv_di_{i}"
        y = convolve(y, w[f"{key}.weight"], w[f"{key}.bias"], padding=(dilation, dilation), dilation=dilation)
        y = np.maximum(norm(y, w, f"{s}bn_di_{i}"), 0.0)
    of_place = pointwise(y, w, f"{s}conv_final")
    return x + x * sigmoid(of_channel[:, :, None, None] + of_place)


def scse(x: Array, w: Weights, options: Options) -> Array:
    first, first_bias = matrix(w, "fc1")
    second, second_bias = matrix(w, "fc2")
    gate = sigmoid(np.maximum(x.mean(axis=(2, 3)) @ first.T + first_bias, 0.0) @ second.T + second_bias)
    by_channel, by_place = np.empty_like(x), np.empty_like(x)
    weight, bias = matrix(w, "spatial")
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            by_channel[:, :, i, j] = x[:, :, i, j] * gate
            by_place[:, :, i, j] = x[:, :, i, j] * sigmoid(x[:, :, i, j] @ weight.T + bias)
    how = options.get("combine", "sum")
    if how == "concat":
        return pointwise(np.concatenate([by_channel, by_place], axis=1), w, "fuse")
    return {
        "sum": by_channel + by_place,
        "max": np.maximum(by_channel, by_place),
        "product": by_channel * by_place,
    }[how]


def simam(x: Array, w: Weights, options: Options) -> Array:
    out = np.empty_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            plane = x[n, c]
            deviations = [(float(value) - float(plane.mean())) ** 2 for value in plane.reshape(-1)]
            variance = math.fsum(deviations) / max(1, len(deviations) - 1)
            energy = np.array(deviations).reshape(plane.shape) / (
                4 * (variance + options.get("e_lambda", 1e-4))
            )
            out[n, c] = plane * sigmoid(energy + 0.5)
    return out


def strip(x: Array, w: Weights, options: Options) -> Array:
    rows = convolve(x.mean(axis=3)[:, :, :, None], w["conv1.weight"], padding=(1, 0))
    columns = convolve(x.mean(axis=2)[:, :, None, :], w["conv2.weight"], padding=(0, 1))
    rows, columns = norm(rows, w, "bn1"), norm(columns, w, "bn2")
    weight, bias = matrix(w, "conv3")
    out = np.empty_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            hidden = np.maximum(rows[:, :, i, 0] + columns[:, :, 0, j], 0.0)
            out[:, :, i, j] = x[:, :, i, j] * sigmoid(hidden @ weight.T + bias)
    return out


def gala(x: Array, w: Weights, options: Options) -> Array:
    first, first_bias = matrix(w, "shrink")
    second, second_bias = matrix(w, "expand")
    g = np.maximum(x.mean(axis=(2, 3)) @ first.T + first_bias, 0.0) @ second.T + second_bias
    place = pointwise(np.maximum(pointwise(x, w, "local_shrink"), 0.0), w, "local_collapse")
    a, m = w["a"].reshape(-1), w["m"].reshape(-1)
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                joined = a[c] * (g[:, c] + place[:, 0, i, j]) + m[c] * (g[:, c] * place[:, 0, i, j])
                out[:, c, i, j] = x[:, c, i, j] * np.tanh(joined)
    return out


def danet(x: Array, w: Weights, options: Options) -> Array:
    n, channels, height, width = x.shape
    out = x.copy()
    if options.get("position", True):
        query, key, value = (pointwise(x, w, f"pam.{part}_conv") for part in ("query", "key", "value"))
        places = [(i, j) for i in range(height) for j in range(width)]
        out += w["pam.gamma"][0] * look(query, key, value, lambda i, j: places)
    if options.get("channel", True):
        for b in range(n):
            for i in range(channels):
                energy = np.array([float((x[b, i] * x[b, j]).sum()) for j in range(channels)])
                weights = softmax(energy.max() - energy)
                for j in range(channels):
                    out[b, i] += w["cam.gamma"][0] * weights[j] * x[b, j]
    return out


def _bilinear_resize(x: Array, height: int, width: int) -> Array:
    """Sample at pixel centres, edges repeated."""
    out = np.zeros((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            y = max((i + 0.5) * x.shape[2] / height - 0.5, 0.0)
            z = max((j + 0.5) * x.shape[3] / width - 0.5, 0.0)
            for a, share_a in ((int(y), 1 - y % 1), (int(y) + 1, y % 1)):
                for b, share_b in ((int(z), 1 - z % 1), (int(z) + 1, z % 1)):
                    source = x[:, :, min(a, x.shape[2] - 1), min(b, x.shape[3] - 1)]
                    out[:, :, i, j] += share_a * share_b * source
    return out


def _unit(x: Array, w: Weights, key: str) -> Array:
    y = pointwise(np.maximum(norm(x, w, f"{key}.bn1"), 0.0), w, f"{key}.conv1")
    y = convolve(np.maximum(norm(y, w, f"{key}.bn2"), 0.0), w[f"{key}.conv2.weight"], padding=(1, 1))
    return x + pointwise(np.maximum(norm(y, w, f"{key}.bn3"), 0.0), w, f"{key}.conv3")


def _halved(x: Array) -> Array:
    rows, columns = (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
    out = np.zeros((*x.shape[:2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = x[:, :, max(0, 2 * i - 1) : 2 * i + 2, max(0, 2 * j - 1) : 2 * j + 2]
            out[:, :, i, j] = window.max(axis=(2, 3))
    return out


def residual_attention(x: Array, w: Weights, options: Options) -> Array:
    depth, per_level = options.get("depth", 1), options.get("mask_units", 1)
    maps, y = [x], x
    for level in range(depth):
        y = _halved(y)
        for unit in range(per_level):
            y = _unit(y, w, f"down.{level}.{unit}")
        maps.append(y)
    for level in reversed(range(depth)):
        for unit in range(per_level):
            y = _unit(y, w, f"up.{level}.{unit}")
        y = _bilinear_resize(y, *maps[level].shape[2:])
        if level:
            y = y + _unit(maps[level], w, f"skip.{level - 1}.0")
    y = pointwise(np.maximum(norm(y, w, "head.0"), 0.0), w, "head.2")
    mask = sigmoid(pointwise(np.maximum(norm(y, w, "head.3"), 0.0), w, "head.5"))
    trunk = x
    for unit in range(options.get("trunk_units", 0)):
        trunk = _unit(trunk, w, f"trunk.{unit}")
    return (1.0 + mask) * trunk


def scconv(x: Array, w: Weights, options: Options) -> Array:
    r, stride, groups = (
        options.get("pooling_ratio", 4),
        options.get("stride", 1),
        max(1, options.get("groups", 1) // 2),
    )
    half = x.shape[1] // 2
    x1, x2 = x[:, :half], x[:, half:]
    pooled = np.zeros((x.shape[0], half, x.shape[2] // r, x.shape[3] // r))
    for i in range(pooled.shape[2]):
        for j in range(pooled.shape[3]):
            pooled[:, :, i, j] = x1[:, :, r * i : r * i + r, r * j : r * j + r].mean(axis=(2, 3))
    context = norm(convolve(pooled, w["k2.0.weight"], padding=(1, 1), groups=groups), w, "k2.1")
    if options.get("upsample") == "nearest":
        rows = np.arange(x.shape[2]) * pooled.shape[2] // x.shape[2]
        columns = np.arange(x.shape[3]) * pooled.shape[3] // x.shape[3]
        context = context[:, :, rows][:, :, :, columns]
    else:
        context = _bilinear_resize(context, *x.shape[2:])
    gated = norm(convolve(x1, w["k3.0.weight"], padding=(1, 1), groups=groups), w, "k3.1") * sigmoid(
        x1 + context
    )
    last = [
        convolve(part, w[f"{key}.weight"], stride=stride, padding=(1, 1), groups=groups)
        for part, key in ((gated, "k4"), (x2, "k1"))
    ]
    return np.concatenate(last, axis=1)


CASES: dict[str, Case] = {
    "bam": Case(
        bam,
        variants=({"reduction": 2}, {}, {"dilation": 1, "layers": 1, "reduction": 4}),
        trained_options={"reduction": 2},
        # The batch norm takes a bias before it out again.
        idle=("fc_0.bias", "reduce0.bias", "di_0.bias", "di_1.bias"),
        bad=(
            (8, {"reduction": 0}, "reduction of bam must be"),
            (8, {"dilation": 0}, "dilation of bam must be"),
        ),
    ),
    "scse": Case(
        scse,
        variants=({}, {"combine": "max"}, {"combine": "concat", "reduction": 4}),
        operations=frozenset(["Max"]),
        bad=((8, {"combine": "maximum"}, "Did you mean 'max'"), (8, {"reduction": -2}, "reduction of scse")),
    ),
    "simam": Case(
        simam,
        variants=({}, {"e_lambda": 0.1}),
        operations=frozenset(["Sub", "Reciprocal", "Sqrt"]),
        bad=((8, {"e_lambda": 0}, "e_lambda of simam must be a number greater than 0"),),
    ),
    "danet": Case(
        danet,
        variants=({}, {"position": False}, {"channel": False, "reduction": 4}),
        sizes=((5, 4), (1, 3), (1, 1)),
        operations=MATMUL | {"Neg"},
        idle=("key_conv.bias",),
        bad=(
            (8, {"position": False, "channel": False}, "computes nothing"),
            (8, {"reduction": 0}, "reduction"),
        ),
    ),
    "residual_attention": Case(
        residual_attention,
        variants=({}, {"depth": 2, "mask_units": 2}, {"trunk_units": 2}),
        operations=frozenset(["Resize", "BatchNormalization", "Shape", "Cast"]),
        bad=(
            (8, {"depth": 0}, "depth of residual_attention must be"),
            (8, {"trunk_units": -1}, "at least 0"),
        ),
    ),
    "strip": Case(
        strip,
        variants=({}, {"reduction": 4}),
        bad=((8, {"reduction": 0}, "reduction of strip must be positive"),),
    ),
    "gala": Case(
        gala,
        variants=({}, {"reduction": 1}),
        operations=frozenset(["Tanh"]),
        bad=((8, {"reduction": 0}, "reduction of gala must be positive"),),
    ),
}

CONVOLUTIONS: dict[str, Case] = {
    "scconv": Case(
        scconv,
        variants=(
            {},
            {"pooling_ratio": 2, "upsample": "nearest"},
            {"pooling_ratio": 1, "stride": 2},
            {"pooling_ratio": 3, "groups": 4},
        ),
        sizes=((5, 6), (7, 9), (2, 3), (1, 1)),
        bad=(
            (12, {"pooling_ratio": 0}, "pooling_ratio of scconv"),
            (12, {"upsample": "cubic"}, "cannot be 'cubic'"),
        ),
    ),
}
