"""Cases of the spatial mechanisms. Oracles: NumPy, loops over positions and heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from attention_case import Array, Case, Weights, convolve, matrix, norm, sigmoid

__all__ = ["CASES", "CONVOLUTIONS"]

Options = Mapping[str, Any]
MATMUL = frozenset(["MatMul", "Softmax", "Transpose"])


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max())
    return e / e.sum()


def pointwise(x: Array, w: Weights, key: str) -> Array:
    """1x1 convolution of (N, C, ...), position by position."""
    weight, bias = matrix(w, key)
    out = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]))
    for position in np.ndindex(*x.shape[2:]):
        out[(slice(None), slice(None), *position)] = (
            x[(slice(None), slice(None), *position)] @ weight.T + bias
        )
    return out


def _places(x: Array) -> list[tuple[int, int]]:
    return [(i, j) for i in range(x.shape[2]) for j in range(x.shape[3])]


def look(
    query: Array,
    key: Array,
    value: Array,
    seen: Callable[[int, int], list[tuple[int, int]]],
    scale: float = 1.0,
) -> Array:
    """Attention of every position over the positions that `seen` names."""
    out = np.zeros((query.shape[0], value.shape[1], *query.shape[2:]))
    for n in range(query.shape[0]):
        for i, j in _places(query):
            places = seen(i, j)
            scores = np.array([scale * float(query[n, :, i, j] @ key[n, :, a, b]) for a, b in places])
            for weight, (a, b) in zip(softmax(scores), places, strict=True):
                out[n, :, i, j] += weight * value[n, :, a, b]
    return out


def sagan(x: Array, w: Weights, options: Options) -> Array:
    f, g, h = (pointwise(x, w, key) for key in "fgh")
    read = look(g, f, h, lambda i, j: _places(x))
    return x + w["gamma"][0] * pointwise(read, w, "v")


def _max_pooled(x: Array) -> Array:
    rows, columns = x.shape[2] // 2, x.shape[3] // 2
    out = np.zeros((*x.shape[:2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            out[:, :, i, j] = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(2, 3))
    return out


def nonlocal_block(x: Array, w: Weights, options: Options) -> Array:
    theta, phi, g = (pointwise(x, w, key) for key in ("theta", "phi", "g"))
    if options.get("subsample"):
        phi, g = _max_pooled(phi), _max_pooled(g)
    read = look(theta, phi, g, lambda i, j: _places(phi))
    return x + norm(pointwise(read, w, "W.0"), w, "W.1")


def _heads(x: Array, w: Weights, prefix: str, heads: int, seen: Callable[[int, int], Any]) -> Array:
    query, key, value = (pointwise(x, w, f"{prefix}{part}") for part in ("query", "key", "value"))
    d = x.shape[1] // heads
    parts = []
    for head in range(heads):
        mine = slice(head * d, head * d + d)
        parts.append(look(query[:, mine], key[:, mine], value[:, mine], seen, 1.0 / math.sqrt(d)))
    return pointwise(np.concatenate(parts, axis=1), w, f"{prefix}proj")


def mhsa(x: Array, w: Weights, options: Options) -> Array:
    return x + _heads(x, w, "", options.get("heads", 4), lambda i, j: _places(x))


def axial(x: Array, w: Weights, options: Options) -> Array:
    heads = options.get("heads", 4)
    y = x + _heads(x, w, "row.", heads, lambda i, j: [(i, b) for b in range(x.shape[3])])
    return y + _heads(y, w, "column.", heads, lambda i, j: [(a, j) for a in range(x.shape[2])])


def cca(x: Array, w: Weights, options: Options) -> Array:
    def cross(i: int, j: int) -> list[tuple[int, int]]:
        places = {(i, b) for b in range(x.shape[3])} | {(a, j) for a in range(x.shape[2])}
        assert len(places) == x.shape[2] + x.shape[3] - 1
        return sorted(places)

    for _ in range(options.get("recurrence", 2)):
        query, key, value = (pointwise(x, w, f"{part}_conv") for part in ("query", "key", "value"))
        x = x + w["gamma"][0] * look(query, key, value, cross)
    return x


def psa(x: Array, w: Weights, options: Options) -> Array:
    size = options.get("mask_size", 13)
    reach = size // 2
    v = np.maximum(norm(pointwise(x, w, "reduce.0"), w, "reduce.1"), 0.0)
    predicted = {}
    for branch in ("collect", "distribute"):
        hidden = np.maximum(norm(pointwise(v, w, f"{branch}.0"), w, f"{branch}.1"), 0.0)
        predicted[branch] = pointwise(hidden, w, f"{branch}.3")
    collected, spread = np.zeros_like(v), np.zeros_like(v)
    for i, j in _places(v):
        for a, b in _places(v):
            if abs(a - i) > reach or abs(b - j) > reach:
                continue
            to, back = (a - i + reach) * size + b - j + reach, (i - a + reach) * size + j - b + reach
            collected[:, :, i, j] += predicted["collect"][:, to, i, j, None] * v[:, :, a, b]
            spread[:, :, i, j] += predicted["distribute"][:, back, a, b, None] * v[:, :, a, b]
    joined = np.concatenate([collected, spread], axis=1) / size**2
    return x + norm(pointwise(joined, w, "proj.0"), w, "proj.1")


def external(x: Array, w: Weights, options: Options) -> Array:
    heads = options.get("heads", 1)
    query = pointwise(x, w, "conv1")
    keys, _ = matrix(w, "mk")
    values, _ = matrix(w, "mv")
    d = x.shape[1] // heads
    read = np.zeros_like(x)
    for n in range(x.shape[0]):
        for head in range(heads):
            mine = slice(head * d, head * d + d)
            logits = np.array([keys @ query[n, mine, i, j] for i, j in _places(x)])  # (HW, S)
            weights = np.stack([softmax(logits[:, s]) for s in range(logits.shape[1])], axis=1)
            for row, (i, j) in zip(weights, _places(x), strict=True):
                read[n, mine, i, j] = values @ (row / (row.sum() + 1e-9))
    return x + norm(pointwise(read, w, "conv2.0"), w, "conv2.1")


def cot(x: Array, w: Weights, options: Options) -> Array:
    k, share = options.get("kernel_size", 3), options.get("share", 8)
    groups = options.get("groups", 4)
    sets = x.shape[1] // share
    static = convolve(x, w["key_embed.0.weight"], padding=(k // 2, k // 2), groups=groups)
    static = np.maximum(norm(static, w, "key_embed.1"), 0.0)
    hidden = norm(pointwise(np.concatenate([static, x], axis=1), w, "embed.0"), w, "embed.1")
    local = pointwise(np.maximum(hidden, 0.0), w, "embed.3")
    v = norm(pointwise(x, w, "value.0"), w, "value.1")
    mixed = np.zeros_like(x)
    for c in range(x.shape[1]):
        for i, j in _places(x):
            for r in range(k):
                for s in range(k):
                    a, b = i + r - k // 2, j + s - k // 2
                    if 0 <= a < x.shape[2] and 0 <= b < x.shape[3]:
                        place = (c % sets) * k * k + r * k + s
                        mixed[:, c, i, j] += local[:, place, i, j] * v[:, c, a, b]
    mixed = norm(mixed, w, "bn")
    dynamic = mixed * sigmoid(mixed)
    first, first_bias = matrix(w, "se.0")
    last, last_bias = matrix(w, "se.3")
    pooled = norm((dynamic + static).mean(axis=(2, 3)) @ first.T + first_bias, w, "se.1")
    scores = np.maximum(pooled, 0.0) @ last.T + last_bias
    out = x.copy()
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            a, b = softmax(scores[n, 2 * c : 2 * c + 2])
            out[n, c] += w["gamma"][0] * (a * dynamic[n, c] + b * static[n, c])
    return out


def _layer_norm(t: Array, w: Weights, key: str) -> Array:
    out = np.empty_like(t)
    for place in np.ndindex(*t.shape[:-1]):
        deviation = np.sqrt(t[place].var() + 1e-5)
        out[place] = (t[place] - t[place].mean()) / deviation * w[f"{key}.weight"] + w[f"{key}.bias"]
    return out


def _linear(t: Array, w: Weights, key: str) -> Array:
    return t @ w[f"{key}.weight"].T + w[f"{key}.bias"]


def _gelu(z: Array) -> Array:
    return z * 0.5 * (1.0 + np.vectorize(math.erf)(z / math.sqrt(2.0)))


def _encoder(tokens: Array, w: Weights, heads: int, depth: int) -> Array:
    d = tokens.shape[2] // heads
    for layer in range(depth):
        key = f"layers.{layer}"
        normed = _layer_norm(tokens, w, f"{key}.norm1")
        q, k, v = (_linear(normed, w, f"{key}.{part}") for part in ("query", "key", "value"))
        read = np.zeros_like(tokens)
        for n in range(tokens.shape[0]):
            for head in range(heads):
                mine = slice(head * d, head * d + d)
                for i in range(tokens.shape[1]):
                    read[n, i, mine] = softmax(k[n, :, mine] @ q[n, i, mine] / math.sqrt(d)) @ v[n, :, mine]
        tokens = tokens + _linear(read, w, f"{key}.proj")
        hidden = _gelu(_linear(_layer_norm(tokens, w, f"{key}.norm2"), w, f"{key}.fc1"))
        tokens = tokens + _linear(hidden, w, f"{key}.fc2")
    return _layer_norm(tokens, w, "norm")


def _position(row: int, column: int, width: int) -> Array:
    quarter = width // 4
    omega = [10000.0 ** (-i / max(1, quarter - 1)) for i in range(quarter)]
    return np.array(
        [math.sin(column * o) for o in omega]
        + [math.cos(column * o) for o in omega]
        + [math.sin(row * o) for o in omega]
        + [math.cos(row * o) for o in omega]
    )


def _cells(size: int, cells: int) -> list[tuple[int, int]]:
    return [(c * size // cells, -(-(c + 1) * size // cells)) for c in range(cells)]


def vit(x: Array, w: Weights, options: Options) -> Array:
    width, heads, depth = options["width"], options.get("heads", 4), options.get("depth", 1)
    n, channels, height, columns = x.shape
    if options.get("over") == "channels":
        grid = options.get("grid", 4)
        pooled = np.array(
            [
                x[:, :, a:b, c:d].mean(axis=(2, 3))
                for a, b in _cells(height, grid)
                for c, d in _cells(columns, grid)
            ]
        ).transpose(1, 2, 0)  # (N, C, cells)
        tokens = _linear(pooled, w, "embed")
        tokens = tokens + np.stack([_position(0, c, width) for c in range(channels)])
        gate = sigmoid(_linear(_encoder(tokens, w, heads, depth), w, "head"))
        return x * gate.reshape(n, channels, 1, 1)
    p = options.get("patch_size", 1)
    kernel = w["embed.weight"].reshape(width, -1)
    tokens = np.zeros((n, (height // p) * (columns // p), width))
    patches = [(i, j) for i in range(height // p) for j in range(columns // p)]
    for t, (i, j) in enumerate(patches):
        patch = x[:, :, i * p : i * p + p, j * p : j * p + p].reshape(n, -1)
        tokens[:, t] = patch @ kernel.T + w["embed.bias"] + _position(i, j, width)
    encoded = _linear(_encoder(tokens, w, heads, depth), w, "head")
    out = x.copy()
    for t, (i, j) in enumerate(patches):
        out[:, :, i * p : i * p + p, j * p : j * p + p] += encoded[:, t].reshape(n, channels, p, p)
    return out


def _bilinear(plane: Array, y: float, x: float) -> float:
    """Value of (H, W) at a place in pixels, zeros outside."""
    total = 0.0
    for a in (math.floor(y), math.floor(y) + 1):
        for b in (math.floor(x), math.floor(x) + 1):
            if 0 <= a < plane.shape[0] and 0 <= b < plane.shape[1]:
                total += (1 - abs(y - a)) * (1 - abs(x - b)) * float(plane[a, b])
    return total


def dcn(x: Array, w: Weights, options: Options) -> Array:
    k, stride, groups = 3, options.get("stride", 1), options.get("groups", 1)
    taps = k * k
    predicted = convolve(x, w["conv_offset.weight"], w["conv_offset.bias"], stride=stride, padding=(1, 1))
    weight = w["conv.weight"]
    per_in, per_out = x.shape[1] // groups, weight.shape[0] // groups
    out = np.zeros((x.shape[0], weight.shape[0], *predicted.shape[2:]))
    for n in range(x.shape[0]):
        for i, j in _places(predicted):
            for tap in range(taps):
                dy, dx = predicted[n, 2 * tap, i, j], predicted[n, 2 * tap + 1, i, j]
                y, z = i * stride - 1 + tap // k + dy, j * stride - 1 + tap % k + dx
                m = 2.0 / (1.0 + math.exp(-predicted[n, 2 * taps + tap, i, j]))
                read = np.array([m * _bilinear(x[n, c], y, z) for c in range(x.shape[1])])
                for o in range(weight.shape[0]):
                    first = o // per_out * per_in
                    out[n, o, i, j] += weight[o, :, tap // k, tap % k] @ read[first : first + per_in]
    return out


_SMALL = ((5, 4), (1, 3), (1, 1))
_VIT = {"width": 8, "heads": 2}

CASES: dict[str, Case] = {
    "sagan": Case(
        sagan,
        sizes=_SMALL,
        operations=MATMUL,
        bad=((8, {"reduction": 0}, "reduction of sagan must be positive"),),
    ),
    "nonlocal": Case(
        nonlocal_block,
        variants=({}, {"reduction": 3}),
        sizes=_SMALL,
        operations=MATMUL,
        idle=("phi.bias",),
        bad=((8, {"reduction": True}, "got True"),),
    ),
    "mhsa": Case(
        mhsa,
        variants=({}, {"heads": 1}, {"heads": 6, "bias": False}),
        sizes=_SMALL,
        few_channels=4,
        operations=MATMUL,
        idle=("key.bias",),
        bad=(
            (
                10,
                {"heads": 4},
                "mhsa cannot split 10 channels into heads=4 equal parts. Choose one of 1, 2, 5, 10",
            ),
            (8, {"heads": 0}, "heads of mhsa must be positive"),
        ),
    ),
    "axial": Case(
        axial,
        variants=({}, {"heads": 3}),
        sizes=_SMALL,
        few_channels=4,
        operations=MATMUL,
        bad=((10, {"heads": 3}, "axial cannot split 10 channels"),),
    ),
    "cca": Case(
        cca,
        variants=({}, {"recurrence": 1, "reduction": 4}),
        sizes=_SMALL,
        operations=MATMUL,
        # What a key's bias adds to a score is the same for all keys.
        idle=("key_conv.bias",),
        bad=((8, {"recurrence": 0}, "recurrence of cca must be positive"),),
    ),
    "psa": Case(
        psa,
        variants=({"mask_size": 13}, {"mask_size": 3}, {"mask_size": 1, "reduction": 2}),
        sizes=_SMALL,
        operations=MATMUL | {"Gather", "BatchNormalization"},
        bad=(
            (8, {"mask_size": 4}, "must be odd"),
            (8, {"reduction": 0}, "reduction of psa must be positive"),
        ),
    ),
    "external": Case(
        external,
        variants=({"memory": 5}, {"memory": 3, "heads": 4}),
        sizes=_SMALL,
        operations=frozenset(["Softmax", "ReduceSum", "Div"]),
        bad=(
            (10, {"heads": 4}, "external cannot split 10"),
            (8, {"memory": 0}, "memory of external must be"),
        ),
    ),
    "cot": Case(
        cot,
        variants=({"share": 4}, {"share": 6, "groups": 2, "kernel_size": 5}),
        few_channels=4,
        operations=frozenset(["Sub"]),
        bad=(
            (10, {}, "cot cannot split 10 channels into groups=4"),
            (12, {"share": 5}, "share=5 equal parts"),
        ),
    ),
    "vit": Case(
        vit,
        variants=(
            _VIT,
            {**_VIT, "over": "channels"},
            {**_VIT, "over": "channels", "grid": 2, "depth": 2},
        ),
        sizes=_SMALL,
        operations=MATMUL | {"LayerNormalization", "Erf", "Div"},
        idle=("key.bias",),
        bad=(
            (8, {"width": 10, "heads": 4}, "multiple of 4 and of heads=4"),
            (8, {"over": "chanels"}, "Did you mean 'channels'"),
        ),
    ),
}

CONVOLUTIONS: dict[str, Case] = {
    "dcn": Case(dcn, variants=({}, {"stride": 2}, {"groups": 3}), tolerance=1e-10),
}
