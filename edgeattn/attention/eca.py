"""Efficient Channel Attention (ECA-Net, arXiv 1910.03151; authors' code: BangguWu/ECANet).

``x * sigmoid(conv1d(mean over H and W))``, the 1-D convolution running over the channels, without bias.
Shapes: (N, C, H, W) -> pooled (N, C, 1, 1) -> gate (N, C, 1, 1) -> (N, C, H, W).

Deviations: none in the function. The kernel size follows the paper by default (odd, near
log2(C)/2 + 1/2). The authors' MobileNetV2 uses 1 below 96 channels and 3 from there on, which mixes no
channels in the first ten blocks; ``kernel_size="repository"`` is that rule.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from edgeattn.attention.base import Attention, EdgeForm
from edgeattn.attention.layers import ChannelRowConv, EcaBandedConv, check_kernel_size, make_average
from edgeattn.errors import RecipeError

__all__ = ["EfficientChannelAttention", "paper_kernel_size"]


def paper_kernel_size(channels: int) -> int:
    """Return the paper's kernel size (gamma 2, b 1): the truncated value, or the next odd number."""
    size = int(abs((math.log2(channels) + 1) / 2))
    return size if size % 2 else size + 1


def _resolve_kernel_size(channels: int, kernel_size: int | str | None) -> int:
    if kernel_size is None or kernel_size == "paper":
        return paper_kernel_size(channels)
    if kernel_size == "repository":
        return 1 if channels < 96 else 3
    if isinstance(kernel_size, str):
        raise RecipeError(
            f"kernel_size of eca must be an odd number, 'paper' or 'repository', got {kernel_size!r}."
        )
    return check_kernel_size(kernel_size)


class EfficientChannelAttention(Attention):
    """ECA, key ``conv.weight`` of shape (1, 1, k); torch's default initialization, as the authors'.

    Args:
        channels: Channels of the map.
        kernel_size: An odd number; None or ``"paper"`` for the paper's rule; ``"repository"`` for the
            rule in the authors' MobileNetV2, whose threshold is meant for width 1.0.

    Raises:
        RecipeError: If the kernel size is not valid.
    """

    kind = "eca"

    def __init__(
        self, channels: int, *, kernel_size: int | Literal["paper", "repository"] | None = None
    ) -> None:
        super().__init__(channels)
        size = _resolve_kernel_size(channels, kernel_size)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        pooled = self.avg_pool(x)  # (N, C, 1, 1)
        row = pooled.squeeze(-1).transpose(1, 2)  # (N, 1, C)
        gate: torch.Tensor = self.sigmoid(self.conv(row).transpose(1, 2).unsqueeze(-1))
        return x * self.apply_factor(gate)

    def _zero_gates(self) -> float:
        self.conv.weight.zero_()
        return 0.5

    def map_reading_weights(self) -> list[torch.Tensor]:
        """Return the convolution's weight."""
        return [self.conv.weight]

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        if form.startswith("banded_conv"):
            return _BandedEca(self, height, width, form)
        return _RowEca(self, height, width, form)


class _BandedEca(EdgeForm):
    """Global pool, 1x1 convolution with a banded matrix, sigmoid, multiply."""

    def __init__(self, source: EfficientChannelAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.avg_pool = make_average(not form.endswith("_mean"), height, width)
        self.conv = EcaBandedConv(source.conv, source.channels)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        gate: torch.Tensor = self.sigmoid(self.conv(self.avg_pool(x)))
        return x * self.apply_factor(gate)


class _RowEca(EdgeForm):
    """Global pool, (1, k) convolution over the channels as a row, sigmoid, multiply."""

    def __init__(self, source: EfficientChannelAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.avg_pool = make_average(not form.endswith("_mean"), height, width)
        self.conv = ChannelRowConv(source.conv)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        row = self.avg_pool(x).reshape(-1, 1, 1, self.channels)
        gate: torch.Tensor = self.sigmoid(self.conv(row)).reshape(-1, self.channels, 1, 1)
        return x * self.apply_factor(gate)
