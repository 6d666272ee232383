"""Gated channel transformation (arXiv 1909.11519; authors' code: z-x-yang/GCT).

``s = alpha * ||x_c||``, ``s_hat = sqrt(C) * s / ||s||``, ``x * (1 + tanh(gamma * s_hat + beta))``, the norms
being the l2 norms over H and W and over the channels.
Shapes: (N, C, H, W) -> s, s_hat, gate (N, C, 1, 1) -> (N, C, H, W).

Deviations: none; as in the authors' code, 1e-5 is added under both roots (there to the sum of squares of a
channel, and to the mean over channels of s squared). The norm over H and W is computed from a mean, so that it
is an ordinary pool.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn

from edgeattn.attention.base import Attention
from edgeattn.attention.layers import make_average
from edgeattn.attention.mapwise import map_size

__all__ = ["GatedChannelTransformation"]

_EPS = 1e-5


class GatedChannelTransformation(Attention):
    """GCT, keys ``alpha``, ``gamma`` and ``beta`` of shape (1, C, 1, 1); starts as the identity."""

    kind = "gct"
    absorbs_input_scale: ClassVar[bool] = False

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`; see `edgeattn.attention.base.StaticEdge`."""
        height, width = map_size(self, x)
        area = height * width
        root = (self.pool(x * x) + _EPS / area).sqrt()
        embedding = root * (self.alpha * math.sqrt(area))
        spread = ((embedding * embedding).mean(1, keepdim=True) + _EPS).sqrt()
        gate = (embedding / spread * self.gamma + self.beta).tanh() + 1.0
        return x * self.apply_factor(gate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        return self.compute(x)

    def _zero_gates(self) -> float:
        self.gamma.zero_()
        self.beta.zero_()
        return 1.0

    def _static_parts(self, height: int, width: int, form: str) -> dict[str, nn.Module]:
        return {"pool": make_average(form == "pool", height, width)}
