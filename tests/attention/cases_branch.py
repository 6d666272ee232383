"""Cases of the mechanisms over branches. Oracles: NumPy, loops over positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from attention_case import Array, Case, Weights, convolve, matrix, norm, sigmoid

__all__ = ["CASES", "CONVOLUTIONS"]


def highway(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    padding = w["gate.weight"].shape[-1] // 2
    h = convolve(x, w["transform.weight"], w["transform.bias"], padding=(padding, padding))
    t = sigmoid(convolve(x, w["gate.weight"], w["gate.bias"], padding=(padding, padding)))
    return np.maximum(h, 0.0) * t + x * (1.0 - t)


CASES: dict[str, Case] = {
    "highway": Case(
        highway,
        variants=({}, {"kernel_size": 3}),
        operations=frozenset({"Sub"}),
        bad=((8, {"kernel_size": 2}, "must be odd"),),
    ),
}


def sk(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    branches, groups, stride = options.get("branches", 2), options.get("groups", 1), options.get("stride", 1)
    maps = []
    for b in range(branches):
        y = convolve(
            x,
            w[f"branches.{b}.0.weight"],
            stride=stride,
            padding=(b + 1, b + 1),
            dilation=b + 1,
            groups=groups,
        )
        maps.append(np.maximum(norm(y, w, f"branches.{b}.1"), 0.0))
    mean = sum(maps).mean(axis=(2, 3), keepdims=True)
    z = np.einsum("oc,ncij->noij", matrix(w, "squeeze")[0], mean)
    z = np.maximum(norm(z, w, "squeeze_bn"), 0.0)[:, :, 0, 0]
    logits = np.stack([z @ matrix(w, f"select.{b}")[0].T for b in range(branches)])
    shares = np.exp(logits) / np.exp(logits).sum(axis=0)
    return sum(share[:, :, None, None] * y for share, y in zip(shares, maps, strict=True))


def _mixture(x: Array, w: Weights, alpha: Array, options: Mapping[str, Any]) -> Array:
    out = []
    for image, weights in zip(x, alpha, strict=True):
        kernel = sum(weights[i] * w[f"experts.{i}.weight"] for i in range(len(weights)))
        padding = (kernel.shape[-1] // 2, kernel.shape[-1] // 2)
        out.append(
            convolve(
                image[None],
                kernel,
                stride=options.get("stride", 1),
                padding=padding,
                groups=options.get("groups", 1),
            )
        )
    return np.concatenate(out)


def condconv(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    weight, bias = matrix(w, "routing.0")
    return _mixture(x, w, sigmoid(x.mean(axis=(2, 3)) @ weight.T + bias), options)


def dynamicconv(x: Array, w: Weights, options: Mapping[str, Any]) -> Array:
    first, first_bias = matrix(w, "routing.fc1")
    second, second_bias = matrix(w, "routing.fc2")
    hidden = np.maximum(x.mean(axis=(2, 3)) @ first.T + first_bias, 0.0)
    powers = np.exp((hidden @ second.T + second_bias) / options.get("temperature", 1.0))
    return _mixture(x, w, powers / powers.sum(axis=1, keepdims=True), options)


CONVOLUTIONS: dict[str, Case] = {
    "sk": Case(
        sk,
        variants=({}, {"groups": 12}, {"branches": 3, "stride": 2}),
        bad=((12, {"branches": 1}, "at least 2"), (12, {"groups": 5}, "groups must divide")),
    ),
    "condconv": Case(
        condconv,
        variants=({}, {"groups": 12, "stride": 2}, {"experts": 2}),
        bad=(
            (12, {"experts": 0}, "experts must be positive"),
            (12, {"stride": 0}, "stride must be positive"),
        ),
    ),
    "dynamicconv": Case(
        dynamicconv,
        variants=({}, {"groups": 12}, {"temperature": 30.0, "stride": 2}),
        bad=((12, {"temperature": 0.0}, "must be positive"), (12, {"reduction": 0}, "reduction must be")),
    ),
}
