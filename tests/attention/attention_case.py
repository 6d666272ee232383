"""What the contract suite has to know about a mechanism: a case, and parts that oracles are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Case", "Weights", "convolve", "matrix", "norm", "sigmoid"]

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Case:
    """How one mechanism (of the contract "map") is tested.

    Attributes:
        oracle: ``oracle(x, weights, options)``: the paper's formula in NumPy, in loops where the package
            uses tensor code, in evaluation mode.
        variants: Options that change the shape of the computation; the first are the defaults or what
            makes the mechanism fit the few channels of the tests.
        beyond_oracle: Indices of variants that the oracle does not know.
        channels: Channels of the maps.
        sizes: Maps (height, width) on which edge forms are compared: odd, small against kernels, one pixel.
        few_channels: The fewest channels that must work.
        operations: ONNX operations of its edge forms beyond the common ones.
        idle: Ends of names of parameters whose gradient is zero for a reason, such as a bias before a softmax.
        trained_options: Options for the gradient test, where the first variant's are not good for it.
        bad: (channels, options, part of the message) that must be refused.
        bfloat16: Whether it runs in bfloat16.
        tolerance: Largest difference from the oracle.
        export_tolerance: Largest difference of the exported graph, float32.
    """

    oracle: Callable[[Array, Weights, Mapping[str, Any]], Array]
    variants: tuple[dict[str, Any], ...] = ({},)
    beyond_oracle: tuple[int, ...] = ()
    channels: int = 12
    sizes: tuple[tuple[int, int], ...] = ((7, 9), (3, 8), (1, 1))
    few_channels: int = 1
    operations: frozenset[str] = frozenset()
    idle: tuple[str, ...] = ()
    trained_options: dict[str, Any] | None = None
    bad: tuple[tuple[int, dict[str, Any], str], ...] = ()
    bfloat16: bool = True
    tolerance: float = 1e-12
    export_tolerance: float = 1e-4


def sigmoid(z: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-z))


def norm(z: Array, w: Weights, key: str, eps: float = 1e-5) -> Array:
    """Batch norm of (N, C, ...) in evaluation mode."""
    out = np.empty_like(z)
    for c in range(z.shape[1]):
        deviation = np.sqrt(w[f"{key}.running_var"][c] + eps)
        out[:, c] = (z[:, c] - w[f"{key}.running_mean"][c]) / deviation * w[f"{key}.weight"][c]
        out[:, c] += w[f"{key}.bias"][c]
    return out


def matrix(w: Weights, key: str) -> tuple[Array, Array]:
    """Weight (out, in) and bias of a linear layer or 1x1 convolution."""
    weight = w[f"{key}.weight"].reshape(w[f"{key}.weight"].shape[0], -1)
    return weight, w.get(f"{key}.bias", np.zeros(weight.shape[0]))


def convolve(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
) -> Array:
    """Convolution of (N, C, H, W) in loops over outputs and taps."""
    n, _, height, width = x.shape
    out_channels, per_group, rows, columns = weight.shape
    reach = (dilation * (rows - 1), dilation * (columns - 1))
    out_height = (height + 2 * padding[0] - reach[0] - 1) // stride + 1
    out_width = (width + 2 * padding[1] - reach[1] - 1) // stride + 1
    out = np.zeros((n, out_channels, out_height, out_width))
    for o in range(out_channels):
        first = o // (out_channels // groups) * per_group
        for i in range(out_height):
            for j in range(out_width):
                for r in range(rows):
                    for s in range(columns):
                        y = i * stride + r * dilation - padding[0]
                        z = j * stride + s * dilation - padding[1]
                        if 0 <= y < height and 0 <= z < width:
                            out[:, o, i, j] += x[:, first : first + per_group, y, z] @ weight[o, :, r, s]
        if bias is not None:
            out[:, o] += bias[o]
    return out
