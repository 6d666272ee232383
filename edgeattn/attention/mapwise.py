"""Parts that mechanisms over maps share: the base of those that add, dot products, static sizes, checks."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from edgeattn.attention.base import Attention, EdgeForm
from edgeattn.attention.layers import DerivedConv2d
from edgeattn.errors import ModelError, RecipeError, close_matches_hint

__all__ = [
    "Additive",
    "ConstantConv",
    "FixedAverage",
    "GammaConv",
    "ScaledConv",
    "attend",
    "average_matrix",
    "check_count",
    "check_divides",
    "check_min_size",
    "check_number",
    "check_choice",
    "conv_norm",
    "map_size",
    "resize",
    "zero_layer",
]


def check_count(kind: str, option: str, value: object, smallest: int = 1) -> int:
    """Return `value` if it is an integer of at least `smallest`.

    Raises:
        RecipeError: Otherwise.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        what = "positive" if smallest == 1 else f"at least {smallest}"
        raise RecipeError(f"{option} of {kind} must be {what}, a whole number; got {value!r}.")
    return value


def check_number(kind: str, option: str, value: object, above: float = 0.0) -> float:
    """Return `value` if it is a finite number greater than `above`.

    Raises:
        RecipeError: Otherwise.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not above < float(value) < float("inf"):  # type: ignore[arg-type]
        raise RecipeError(f"{option} of {kind} must be a number greater than {above:g}, got {value!r}.")
    return float(value)  # type: ignore[arg-type]


def check_divides(kind: str, option: str, value: object, channels: int) -> int:
    """Return `value` if `channels` can be split into that many equal parts.

    Raises:
        RecipeError: Otherwise, naming divisors that are possible.
    """
    parts = check_count(kind, option, value)
    if channels % parts:
        possible = [str(n) for n in range(1, min(channels, 64) + 1) if channels % n == 0]
        raise RecipeError(
            f"{kind} cannot split {channels} channels into {option}={parts} equal parts. "
            f"Choose one of {', '.join(possible)}."
        )
    return parts


def check_min_size(kind: str, height: int, width: int, smallest: int, why: str) -> None:
    """Refuse maps with fewer than `smallest` rows or columns.

    Raises:
        ModelError: If the map is smaller, naming both sizes.
    """
    if height < smallest or width < smallest:
        raise ModelError(
            f"{kind} needs maps of at least {smallest}x{smallest} ({why}), got {height}x{width}. "
            "Choose a larger input or an earlier place."
        )


def check_choice(kind: str, option: str, value: str, known: tuple[str, ...]) -> str:
    """Return `value` if it is one of `known`.

    Raises:
        RecipeError: Otherwise, with the closest.
    """
    if value not in known:
        raise RecipeError(f"{option} of {kind} cannot be {value!r}. {close_matches_hint(str(value), known)}")
    return value


def map_size(module: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Return height and width of `x`; constants in an edge form, so that a trace holds no shapes."""
    if isinstance(module, EdgeForm):
        return module.height, module.width
    return x.shape[2], x.shape[3]


class Additive(Attention):
    """Base of mechanisms that add to their input: ``x + f(x)``.

    They start as the identity by a zero last layer of f; the gain has no meaning and stays 1.
    """

    absorbs_input_scale: ClassVar[bool] = False

    def _zero_output(self) -> None:
        """Zero the last layer of f, in place."""
        raise NotImplementedError

    def _zero_gates(self) -> float:
        self._zero_output()
        return 1.0

    def absorb(self, input_scale: float, gain: float = 1.0) -> float:
        """Return 1: there is no gain to hand on.

        Raises:
            ModelError: If the input is to be scaled: what is added would have to be, too.
        """
        super().absorb(input_scale, 1.0)
        return 1.0


def zero_layer(layer: nn.Module) -> None:
    """Zero the weight and the bias of a layer, in place (call under `torch.no_grad`)."""
    for parameter in (layer.weight, layer.bias):
        if isinstance(parameter, torch.Tensor):
            parameter.zero_()


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int] = 1,
    *,
    dilation: int = 1,
    groups: int = 1,
) -> list[nn.Module]:
    """Return a convolution without bias that keeps the map's size, and its batch norm."""
    sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    padding = (sizes[0] // 2 * dilation, sizes[1] // 2 * dilation)
    conv = nn.Conv2d(
        in_channels, out_channels, sizes, padding=padding, dilation=dilation, groups=groups, bias=False
    )
    return [conv, nn.BatchNorm2d(out_channels)]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    layout: Literal["rows", "columns"] = "rows",
) -> torch.Tensor:
    """Return softmax-weighted values, for queries, keys and values laid out as channels x positions.

    The softmax is over the keys. Both layouts compute the same; they differ in what is transposed.

    Args:
        query: (..., D, Lq), scaled already.
        key: (..., D, Lk).
        value: (..., E, Lk).
        layout: ``"rows"``: weights (..., Lq, Lk), softmax over the last axis; queries, values and the
            result are transposed. ``"columns"``: weights (..., Lk, Lq), softmax over the last but one;
            only the keys are.

    Returns:
        (..., E, Lq).
    """
    if layout == "columns":
        weights = torch.softmax(key.transpose(-1, -2) @ query, dim=-2)
        return value @ weights
    weights = torch.softmax(query.transpose(-1, -2) @ key, dim=-1)
    return (weights @ value.transpose(-1, -2)).transpose(-1, -2)


class ConstantConv(DerivedConv2d):
    """A grouped convolution whose weight is a constant, not a Parameter and in no state dict.

    Args:
        weight: (out, in / groups, kh, kw).
        groups: Of the convolution.
        padding: Rows and columns.
    """

    weight: torch.Tensor

    def __init__(self, weight: torch.Tensor, *, groups: int = 1, padding: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.groups = groups
        self.padding = padding

    def derived_weight(self) -> torch.Tensor:
        """Return the constant."""
        return self.weight

    def convolve(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Convolve `x` in groups."""
        return functional.conv2d(x, weight, bias, padding=self.padding, groups=self.groups)

    def to_conv2d(self) -> nn.Conv2d:
        """Return an ordinary convolution that holds a copy of the constant."""
        out, per_group, *kernel = self.weight.shape
        conv = nn.Conv2d(
            per_group * self.groups, out, (kernel[0], kernel[1]), padding=self.padding, groups=self.groups,
            bias=False, device=self.weight.device, dtype=self.weight.dtype,
        )  # fmt: skip
        with torch.no_grad():
            conv.weight.copy_(self.weight)
        conv.train(self.training)
        return conv


class ScaledConv(DerivedConv2d):
    """A convolution with weight and bias times a constant: the scale of a dot product, for free."""

    def __init__(self, source: nn.Conv2d, factor: float) -> None:
        super().__init__()
        self.weight = source.weight
        self.bias = source.bias
        self.factor = factor

    def derived_weight(self) -> torch.Tensor:
        """Return the weight times the factor."""
        return self.weight * self.factor

    def derived_bias(self) -> torch.Tensor | None:
        """Return the bias times the factor."""
        return None if self.bias is None else self.bias * self.factor


class GammaConv(DerivedConv2d):
    """A convolution and the learned factor ``gamma`` (1,) on its result."""

    def __init__(self, source: nn.Conv2d, gamma: nn.Parameter) -> None:
        super().__init__()
        self.weight = source.weight
        self.bias = source.bias
        # Under another owner's key already: here it must not appear a second time in a state dict.
        self._gamma = [gamma]

    def derived_weight(self) -> torch.Tensor:
        """Return the weight times gamma."""
        return self.weight * self._gamma[0]

    def derived_bias(self) -> torch.Tensor | None:
        """Return the bias times gamma."""
        return None if self.bias is None else self.bias * self._gamma[0]


def average_matrix(size: int, cells: int) -> torch.Tensor:
    """Return the matrix (cells, size) that `nn.AdaptiveAvgPool1d(cells)` multiplies with, in float64."""
    return functional.adaptive_avg_pool1d(torch.eye(size, dtype=torch.float64), cells).T.contiguous()


class FixedAverage(nn.Module):
    """`nn.AdaptiveAvgPool2d(cells)` for one size: a static pool, or two constant matrices.

    Args:
        height: Rows of the map.
        width: Columns of the map.
        cells: Rows and columns of the result.
        like: A tensor of the type and on the device of the constants.
    """

    left: torch.Tensor
    right: torch.Tensor

    def __init__(self, height: int, width: int, cells: int, like: torch.Tensor) -> None:
        super().__init__()
        self.pool: nn.AvgPool2d | None = None
        if height % cells == 0 and width % cells == 0:
            self.pool = nn.AvgPool2d((height // cells, width // cells))
            return
        self.register_buffer("left", average_matrix(height, cells).to(like), persistent=False)
        self.register_buffer("right", average_matrix(width, cells).T.contiguous().to(like), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Average `x`, (N, C, height, width) -> (N, C, cells, cells)."""
        if self.pool is not None:
            pooled: torch.Tensor = self.pool(x)
            return pooled
        return torch.matmul(self.left, torch.matmul(x, self.right))


def resize(x: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Interpolate `x` to `size`; ``"bilinear"`` samples at pixel centres."""
    if mode == "nearest":
        return functional.interpolate(x, size=size, mode="nearest")
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
