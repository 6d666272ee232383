"""Global and local attention (GALA, arXiv 1805.08819).

Global: ``g = W2 relu(W1 mean(x))`` (N, C, 1, 1), as in SE but without its sigmoid. Local:
``l = w2 * relu(w1 * x)`` (N, 1, H, W), two 1x1 convolutions, to C / reduction channels and to one. Joined for each
channel with learned factors: ``A = tanh(a (g + l) + m g l)`` and ``y = x A``. The tanh lets a gate change signs.

Deviations: fully connected layers are 1x1 convolutions. The reduced width is at least 1. As the identity start,
the layers before the tanh are zero except for the local bias, which opens every gate half-way.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from edgeattn.attention.base import Attention
from edgeattn.attention.layers import make_average
from edgeattn.attention.mapwise import check_count, zero_layer

__all__ = ["GlobalLocalAttention"]

_HALF_OPEN = math.atanh(0.5)


class GlobalLocalAttention(Attention):
    """GALA, keys ``shrink``, ``expand``, ``local_shrink``, ``local_collapse``, ``a``, ``m``.

    Args:
        channels: Channels of the map.
        reduction: Ratio of `channels` to the width inside both paths; 4 in the paper.

    Raises:
        RecipeError: If the reduction is not positive.
    """

    kind = "gala"

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        super().__init__(channels)
        inner = max(1, channels // check_count("gala", "reduction", reduction))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.relu = nn.ReLU()
        self.shrink = nn.Conv2d(channels, inner, 1)
        self.expand = nn.Conv2d(inner, channels, 1)
        self.local_shrink = nn.Conv2d(channels, inner, 1)
        self.local_collapse = nn.Conv2d(inner, 1, 1)
        self.a = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.m = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.tanh = nn.Tanh()

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`; also the edge form's formula."""
        of_channel = self.expand(self.relu(self.shrink(self.pool(x))))  # (N, C, 1, 1)
        of_position = self.local_collapse(self.relu(self.local_shrink(x)))  # (N, 1, H, W)
        # a (g + l) + m g l = l (a + m g) + a g: two operations on the full map instead of five
        slope = self.a + self.m * of_channel
        gate: torch.Tensor = self.tanh(of_position * slope + self.a * of_channel)
        return x * self.apply_factor(gate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        return self.compute(x)

    def _zero_gates(self) -> float:
        zero_layer(self.expand)
        zero_layer(self.local_collapse)
        if self.local_collapse.bias is not None:
            self.local_collapse.bias.fill_(_HALF_OPEN)
        self.a.fill_(1.0)
        return 0.5

    def map_reading_weights(self) -> list[torch.Tensor]:
        """Return the first weights of both paths."""
        return [self.shrink.weight, self.local_shrink.weight]

    def _static_parts(self, height: int, width: int, form: str) -> dict[str, nn.Module]:
        return {"pool": make_average(form == "pool_conv", height, width)}
