"""Style-based recalibration module (arXiv 1903.10829).

``x * sigmoid(bn(w_mean * mean + w_std * std))``: the style of a channel is the mean and the standard
deviation of its map, weighed by two weights of its own (a channel-wise fully connected layer).
Shapes: (N, C, H, W) -> style (N, C, 1, 2) -> gate (N, C, 1, 1) -> (N, C, H, W).

Deviations: 1e-5 is added to the variance, so that a constant map has a gradient. The channel-wise layer is
a depthwise convolution over the two values of the style, key ``cfc.weight`` of shape (C, 1, 1, 2), which the
batch norm behind it folds into.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from edgeattn.attention.base import Attention
from edgeattn.attention.layers import make_average

__all__ = ["StyleRecalibration"]

_EPS = 1e-5


class StyleRecalibration(Attention):
    """SRM, keys ``cfc.weight`` and ``bn``."""

    kind = "srm"
    absorbs_input_scale: ClassVar[bool] = False

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.variance_pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.cfc = nn.Conv2d(channels, channels, (1, 2), groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`; see `edgeattn.attention.base.StaticEdge`."""
        mean = self.pool(x)
        centred = x - mean
        deviation = (self.variance_pool(centred * centred) + _EPS).sqrt()
        gate: torch.Tensor = self.bn(self.cfc(torch.cat([mean, deviation], dim=3))).sigmoid()
        return x * self.apply_factor(gate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        return self.compute(x)

    def _zero_gates(self) -> float:
        self.bn.weight.zero_()
        self.bn.bias.zero_()
        return 0.5

    def _static_parts(self, height: int, width: int, form: str) -> dict[str, nn.Module]:
        pooled = form == "pool_conv"
        parts: dict[str, Any] = {
            name: make_average(pooled, height, width) for name in ("pool", "variance_pool")
        }
        return parts
