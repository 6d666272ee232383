"""Non-local block, embedded Gaussian (arXiv 1711.07971; authors' code: facebookresearch/video-nonlocal-net).

``y = x + W_z(sum_j softmax_j(theta(x_i) . phi(x_j)) g(x_j))``: the softmax is over the keys j. theta, phi, g
are 1x1 convolutions to C / reduction channels; W_z is a 1x1 convolution and a batch norm whose scale starts at
zero. Shapes: (N, C, H, W); weights (N, HW, HW), or (N, HW, HW/4) with `subsample`.

Deviations: 2-D maps only. The scores are not divided by sqrt(d), as in the paper; the authors' code can.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from edgeattn.attention.base import EdgeForm
from edgeattn.attention.mapwise import Additive, attend, check_count, check_min_size

__all__ = ["NonLocalBlock"]


class NonLocalBlock(Additive):
    """Non-local block, keys ``theta``, ``phi``, ``g``, ``W.{0,1}``.

    Args:
        channels: Channels of the map.
        reduction: Ratio of `channels` to the width of theta, phi and g.
        subsample: Maximum-pool what phi and g give by 2 x 2: a quarter of the keys.

    Raises:
        RecipeError: If the reduction is not positive.
    """

    kind = "nonlocal"

    def __init__(self, channels: int, *, reduction: int = 2, subsample: bool = False) -> None:
        super().__init__(channels)
        inner = max(1, channels // check_count("nonlocal", "reduction", reduction))
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.W = nn.Sequential(nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels))
        nn.init.zeros_(self.W[1].weight)
        self.pool = nn.MaxPool2d(2) if subsample else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add attention to `x`, shape (N, C, H, W).

        Raises:
            ModelError: If the map is too small to be pooled.
        """
        keys, values = self.phi(x), self.g(x)
        if self.pool is not None:
            check_min_size(self.kind, x.shape[2], x.shape[3], 2, "subsample pools 2x2")
            keys, values = self.pool(keys), self.pool(values)
        read = attend(self.theta(x).flatten(2), keys.flatten(2), values.flatten(2))
        y: torch.Tensor = x + self.W(read.unflatten(2, x.shape[2:]))
        return y

    def _zero_output(self) -> None:
        self.W[1].weight.zero_()
        self.W[1].bias.zero_()

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _NonLocalEdge(self, height, width, form)


class _NonLocalEdge(EdgeForm):
    """Static shapes; see `attend` for the two layouts."""

    def __init__(self, source: NonLocalBlock, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.layout: Literal["rows", "columns"] = "rows" if form == "rows" else "columns"
        self.theta, self.phi, self.g, self.W = source.theta, source.phi, source.g, source.W
        self.pool = source.pool
        self.keys = height * width
        if self.pool is not None:
            check_min_size(self.kind, height, width, 2, "subsample pools 2x2")
            self.keys = (height // 2) * (width // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        inner = self.theta.out_channels
        keys, values = self.phi(x), self.g(x)
        if self.pool is not None:
            keys, values = self.pool(keys), self.pool(values)
        flat = (-1, inner, self.keys)
        query = self.theta(x).reshape(-1, inner, self.height * self.width)
        read = attend(query, keys.reshape(flat), values.reshape(flat), layout=self.layout)
        y: torch.Tensor = x + self.W(read.reshape(-1, inner, self.height, self.width))
        return y
