"""Global second-order pooling (GSoP-Net, arXiv 1811.12006; authors' code: ZilinGao/Global-Second-order-Pooling).

A 1x1 convolution to c' channels; their c' x c' covariance over all positions; a row-wise (grouped) convolution
that turns every row of it into four numbers; a 1x1 convolution to C; ``x * sigmoid(...)``.
Shapes: (N, C, H, W) -> (N, c', H, W) -> covariance (N, c', c', 1) -> (N, 4c', 1, 1) -> gate (N, C, 1, 1).

Deviations: c' follows the channels (a quarter of them, from 8 to 128), where the authors have 128 for maps of
256 channels and more. The batch norms and the ReLU are those of the authors' code.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from edgeattn.attention.base import Attention
from edgeattn.attention.layers import check_positive, make_average
from edgeattn.attention.mapwise import map_size

__all__ = ["SecondOrderPooling"]


class SecondOrderPooling(Attention):
    """GSoP, keys ``reduce``, ``reduce_bn``, ``row_bn``, ``row_conv`` and ``expand``.

    Args:
        channels: Channels of the map.
        covariance_channels: c'; None for a quarter of the channels, from 8 to 128.

    Raises:
        RecipeError: If an option's value is not valid.
    """

    kind = "gsop"
    absorbs_input_scale: ClassVar[bool] = False

    def __init__(self, channels: int, *, covariance_channels: int | None = None) -> None:
        super().__init__(channels)
        rows = (
            min(128, max(8, channels // 4))
            if covariance_channels is None
            else check_positive("covariance_channels", covariance_channels)
        )
        self.rows = rows
        self.reduce = nn.Conv2d(channels, rows, 1, bias=False)
        self.reduce_bn = nn.BatchNorm2d(rows)
        self.relu = nn.ReLU()
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.row_bn = nn.BatchNorm2d(rows)
        self.row_conv = nn.Conv2d(rows, 4 * rows, (rows, 1), groups=rows)
        self.expand = nn.Conv2d(4 * rows, channels, 1)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`; see `edgeattn.attention.base.StaticEdge`."""
        height, width = map_size(self, x)
        area = height * width
        z = self.relu(self.reduce_bn(self.reduce(x)))
        z = (z - self.pool(z)).reshape(-1, self.rows, area)
        covariance = torch.matmul(z, z.transpose(1, 2)) * (1.0 / area)
        rows = self.row_bn(covariance.reshape(-1, self.rows, self.rows, 1))
        gate: torch.Tensor = self.expand(self.row_conv(rows)).sigmoid()
        return x * self.apply_factor(gate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        return self.compute(x)

    def _zero_gates(self) -> float:
        self.expand.weight.zero_()
        if self.expand.bias is not None:
            self.expand.bias.zero_()
        return 0.5

    def _static_parts(self, height: int, width: int, form: str) -> dict[str, nn.Module]:
        return {"pool": make_average(form == "pool_conv", height, width)}
