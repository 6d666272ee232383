"""Residual attention (Residual Attention Network, arXiv 1704.06904).

``y = (1 + M(x)) * T(x)``: the soft mask M in (0, 1) comes from a bottom-up top-down branch: maximum pooling
3x3 with stride 2 and residual units going down, bilinear interpolation and residual units going up, skip
connections between the levels, then two 1x1 convolutions and a sigmoid. T, the trunk, is a chain of residual
units. Shapes: (N, C, H, W) throughout.

Deviations: the units are the paper's pre-activation bottlenecks (batch norm, ReLU, convolution; 1x1, 3x3, 1x1).
By default there are none in the trunk (the network into which the module is inserted is the trunk; 2 in
the paper) and the unit before the fork is the caller's. Interpolation samples at pixel centres.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from edgeattn.attention.base import Attention
from edgeattn.attention.mapwise import check_count, conv_norm, map_size, resize, zero_layer

__all__ = ["ResidualAttention"]


class _Unit(nn.Module):
    """Pre-activation bottleneck with a quarter of the channels inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 4)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(self.relu(self.bn1(x)))
        y = self.conv2(self.relu(self.bn2(y)))
        total: torch.Tensor = x + self.conv3(self.relu(self.bn3(y)))
        return total


def _units(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(_Unit(channels) for _ in range(count)))


class ResidualAttention(Attention):
    """Residual attention, keys ``trunk.*``, ``down.*``, ``skip.*``, ``up.*``, ``head.*``.

    Args:
        channels: Channels of the map.
        depth: How often the mask branch halves the map.
        mask_units: Residual units at each level of the mask branch (r in the paper).
        trunk_units: Residual units in the trunk (t in the paper, where it is 2).

    Raises:
        RecipeError: If an option is out of range.
    """

    kind = "residual_attention"
    # The first layers of the mask's units are batch norms, which add.
    absorbs_input_scale: ClassVar[bool] = False

    def __init__(self, channels: int, *, depth: int = 1, mask_units: int = 1, trunk_units: int = 0) -> None:
        super().__init__(channels)
        self.depth = check_count("residual_attention", "depth", depth)
        check_count("residual_attention", "mask_units", mask_units)
        check_count("residual_attention", "trunk_units", trunk_units, 0)
        self.trunk = _units(channels, trunk_units)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.down = nn.ModuleList(_units(channels, mask_units) for _ in range(depth))
        self.skip = nn.ModuleList(_units(channels, 1) for _ in range(depth - 1))
        self.up = nn.ModuleList(_units(channels, mask_units) for _ in range(depth))
        self.head = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), *conv_norm(channels, channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )  # fmt: skip
        self.sigmoid = nn.Sigmoid()

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Gate the trunk's map; also the edge form's formula."""
        size = map_size(self, x)
        sizes, skips, y = [], [], x
        for level in range(self.depth):
            sizes.append(size)
            y = self.down[level](self.pool(y))
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
            if level < self.depth - 1:
                skips.append(self.skip[level](y))
        for level in reversed(range(self.depth)):
            y = resize(self.up[level](y), sizes[level], "bilinear")
            if level > 0:
                y = y + skips[level - 1]
        gate: torch.Tensor = self.sigmoid(self.head(y)) + 1.0
        trunk: torch.Tensor = self.trunk(x)
        return trunk * self.apply_factor(gate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        return self.compute(x)

    def _zero_gates(self) -> float:
        zero_layer(self.head[-1])
        for unit in self.trunk:
            if isinstance(unit, _Unit):
                zero_layer(unit.conv3)
        return 1.5
