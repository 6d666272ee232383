"""Gather-Excite (arXiv 1810.12348).

Gather: a summary of every neighbourhood of the map, ``extent`` times coarser than it. Excite: brought back
to the map's size (nearest), ``x * sigmoid(...)``.
Shapes: (N, C, H, W) -> (N, C, ceil(H / e), ceil(W / e)) -> gate (N, C, H, W).

- ``theta_minus``: gather is an average pool of size 2e - 1 and stride e; no parameters.
- ``theta``: gather is a chain of depthwise 3x3 convolutions of stride 2, each with a batch norm, ReLU between.
- ``theta_plus``: as ``theta``, and excite passes the summary through two 1x1 convolutions first.

Deviations: the pool averages what lies inside the map, not the padding. The global extent is offered for
``theta_minus`` alone: with parameters it is one depthwise kernel as large as the map, which fixes the map's
size. The sigmoid comes before the nearest interpolation, which it commutes with. The squeezed width is at
least 8.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from edgeattn.attention.base import Attention
from edgeattn.attention.layers import check_positive, make_average
from edgeattn.attention.mapwise import map_size
from edgeattn.errors import RecipeError, close_matches_hint

__all__ = ["GatherExcite"]

_VARIANTS = ("theta_minus", "theta", "theta_plus")


class GatherExcite(Attention):
    """GE, keys ``gather.{i}.{conv,bn}`` and ``excite.{0,2}``.

    Args:
        channels: Channels of the map.
        variant: See above.
        extent: A power of two from 2 on, or ``"global"``.
        reduction: Squeeze ratio of ``theta_plus``.

    Raises:
        RecipeError: If an option's value is not valid.
    """

    kind = "ge"
    absorbs_input_scale: ClassVar[bool] = False

    def __init__(
        self,
        channels: int,
        *,
        variant: Literal["theta_minus", "theta", "theta_plus"] = "theta_plus",
        extent: int | Literal["global"] = 8,
        reduction: int = 16,
    ) -> None:
        super().__init__(channels)
        if variant not in _VARIANTS:
            raise RecipeError(
                f"variant of ge cannot be {variant!r}. {close_matches_hint(variant, _VARIANTS)}"
            )
        squeezed = max(8, channels // check_positive("reduction", reduction))
        self.gather: nn.Module
        if extent == "global":
            if variant != "theta_minus":
                raise RecipeError("The extent 'global' of ge is for the variant 'theta_minus' alone.")
            self.gather = nn.AdaptiveAvgPool2d(1)
        else:
            size = check_positive("extent", extent)
            if size < 2 or size & (size - 1):
                raise RecipeError(f"extent of ge must be a power of two from 2 on, got {size}.")
            if variant == "theta_minus":
                self.gather = nn.AvgPool2d(2 * size - 1, size, size - 1, count_include_pad=False)
            else:
                self.gather = _gather(channels, size.bit_length() - 1)
        self.excite: nn.Module = nn.Identity()
        if variant == "theta_plus":
            self.excite = nn.Sequential(
                nn.Conv2d(channels, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, channels, 1)
            )
        self.is_global = extent == "global"

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`; see `edgeattn.attention.base.StaticEdge`."""
        gate = self.apply_factor(self.excite(self.gather(x)).sigmoid())
        if not self.is_global:
            gate = functional.interpolate(gate, size=map_size(self, x), mode="nearest")
        return x * gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        return self.compute(x)

    def _zero_gates(self) -> float:
        if isinstance(self.excite, nn.Sequential):
            last: Any = self.excite[2]
        elif isinstance(self.gather, nn.Sequential):
            last = self.gather[-1].bn
        else:
            # Nothing here can be zeroed: a gate of the mean of a normalized map is a half, not exactly.
            raise RecipeError(
                "The variant 'theta_minus' of ge has no parameters, and cannot start as identity."
            )
        last.weight.zero_()
        last.bias.zero_()
        return 0.5

    def _static_parts(self, height: int, width: int, form: str) -> dict[str, nn.Module]:
        return {"gather": make_average(True, height, width)} if self.is_global else {}


class _DepthwiseNorm(nn.Module):
    def __init__(self, channels: int, relu: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.act: nn.Module = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.act(self.bn(self.conv(x)))
        return y


def _gather(channels: int, steps: int) -> nn.Sequential:
    return nn.Sequential(*(_DepthwiseNorm(channels, step < steps - 1) for step in range(steps)))
