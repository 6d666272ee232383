"""Self-attention of SAGAN (arXiv 1805.08318).

Every position looks at every other: ``s_ij = f(x_i) . g(x_j)``, softmax over i, and
``y_j = x_j + gamma * v(sum_i softmax(s)_ij h(x_i))``. f, g, h are 1x1 convolutions to C / reduction
channels, v one back to C. Shapes: (N, C, H, W); weights (N, HW, HW).

Deviations: no spectral normalization, which is a matter of training a GAN. The maximum pooling on f and h
in the authors' TensorFlow code is not in the paper and not here. The reduced width is at least 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from edgeattn.attention.base import EdgeForm
from edgeattn.attention.mapwise import Additive, GammaConv, attend, check_count

__all__ = ["SaganSelfAttention"]


class SaganSelfAttention(Additive):
    """SAGAN's self-attention, keys ``f``, ``g``, ``h``, ``v``, ``gamma``.

    Args:
        channels: Channels of the map.
        reduction: Ratio of `channels` to the width of f, g and h.

    Raises:
        RecipeError: If the reduction is not positive.
    """

    kind = "sagan"

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__(channels)
        inner = max(1, channels // check_count("sagan", "reduction", reduction))
        self.f = nn.Conv2d(channels, inner, 1, bias=False)
        self.g = nn.Conv2d(channels, inner, 1, bias=False)
        self.h = nn.Conv2d(channels, inner, 1, bias=False)
        self.v = nn.Conv2d(inner, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add attention to `x`, shape (N, C, H, W)."""
        read = attend(self.g(x).flatten(2), self.f(x).flatten(2), self.h(x).flatten(2))
        return x + self.gamma * self.v(read.unflatten(2, x.shape[2:]))

    def _zero_output(self) -> None:
        self.gamma.zero_()

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _SaganEdge(self, height, width, form)


class _SaganEdge(EdgeForm):
    """Static shapes; ``gamma`` scales the last convolution's result, which export folds away."""

    def __init__(self, source: SaganSelfAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.layout: Literal["rows", "columns"] = "rows" if form == "rows" else "columns"
        self.f, self.g, self.h = source.f, source.g, source.h
        self.gamma = source.gamma
        self.v = GammaConv(source.v, source.gamma)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        inner = self.f.out_channels
        flat = (-1, inner, self.height * self.width)
        read = attend(
            self.g(x).reshape(flat), self.f(x).reshape(flat), self.h(x).reshape(flat), layout=self.layout
        )
        y: torch.Tensor = x + self.v(read.reshape(-1, inner, self.height, self.width))
        return y
