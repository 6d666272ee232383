"""Criss-cross attention (CCNet, arXiv 1811.11721; authors' code: speedinghzl/CCNet).

Every position looks at the H + W - 1 positions of its own row and column, one softmax over them all;
``y = gamma * attended + x``, applied `recurrence` times with the same parameters, so that the second pass
sees the whole map. Shapes: (N, C, H, W); scores (N, H, W, H + W).

The own position is in the row and in the column and counts once: its score in the column is minus infinity.

Deviations: the convolutions before, between and behind that make a segmentation head of it are in
`edgeattn.models.heads`. The reduced width is at least 1.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeattn.attention.base import EdgeForm
from edgeattn.attention.mapwise import Additive, GammaConv, check_count

__all__ = ["CrissCrossAttention"]


class CrissCrossAttention(Additive):
    """Criss-cross attention, keys ``query_conv``, ``key_conv``, ``value_conv``, ``gamma``.

    Args:
        channels: Channels of the map.
        reduction: Ratio of `channels` to the width of queries and keys.
        recurrence: How often it is applied.

    Raises:
        RecipeError: If an option is not positive.
    """

    kind = "cca"

    def __init__(self, channels: int, *, reduction: int = 8, recurrence: int = 2) -> None:
        super().__init__(channels)
        inner = max(1, channels // check_count("cca", "reduction", reduction))
        self.recurrence = check_count("cca", "recurrence", recurrence)
        self.query_conv = nn.Conv2d(channels, inner, 1)
        self.key_conv = nn.Conv2d(channels, inner, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add attention to `x`, shape (N, C, H, W)."""
        height = x.shape[2]
        own = torch.eye(height, dtype=torch.bool, device=x.device)[:, None]  # (H, 1, H)
        for _ in range(self.recurrence):
            query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
            of_column = torch.einsum("ndhw,ndkw->nhwk", query, key).masked_fill(own, float("-inf"))
            of_row = torch.einsum("ndhw,ndhk->nhwk", query, key)
            weights = torch.cat([of_column, of_row], dim=3).softmax(3)
            read = torch.einsum("nhwk,ndkw->ndhw", weights[..., :height], value)
            read = read + torch.einsum("nhwk,ndhk->ndhw", weights[..., height:], value)
            x = x + self.gamma * read
        return x

    def _zero_output(self) -> None:
        self.gamma.zero_()

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _CrissCrossEdge(self, height, width, form)


class _CrissCrossEdge(EdgeForm):
    """Batched MatMul; a constant keeps the own position out of the column.

    ``gamma`` is part of the values' weights: attention is linear in its values.
    """

    # exp(-10000) is 0 in every float type, and no score comes near; -inf would be no range to calibrate.
    _NEVER = -1e4
    own: torch.Tensor

    def __init__(self, source: CrissCrossAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.recurrence = source.recurrence
        self.query_conv, self.key_conv = source.query_conv, source.key_conv
        self.gamma = source.gamma
        self.value_conv = GammaConv(source.value_conv, source.gamma)
        own = torch.eye(height).to(source.gamma) * self._NEVER
        self.register_buffer("own", own.reshape(1, 1, height, height), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        for _ in range(self.recurrence):
            query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
            # (N, W, H, d) @ (N, W, d, H) -> (N, W, H, H), and (N, H, W, W) along the row
            of_column = query.permute(0, 3, 2, 1) @ key.permute(0, 3, 1, 2) + self.own
            of_row = query.permute(0, 2, 3, 1) @ key.permute(0, 2, 1, 3)
            weights = torch.cat([of_column.permute(0, 2, 1, 3), of_row], dim=3).softmax(3)
            in_column = weights.narrow(3, 0, self.height).permute(0, 2, 1, 3)
            in_row = weights.narrow(3, self.height, self.width)
            column = (in_column @ value.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
            row = (in_row @ value.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            x = x + (column + row)
        return x
