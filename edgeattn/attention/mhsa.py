"""Scaled dot-product multi-head self-attention over positions (arXiv 1706.03762, section 3.2).

``softmax(Q K^T / sqrt(d)) V`` for each head, heads joined, and an output projection; the positions of the map
are the tokens, and 1x1 convolutions are the projections. Shapes: (N, C, H, W); weights (N, heads, HW, HW).

Deviations: the module adds its result to its input (`residual`), so that it can stand anywhere in a network;
the layer norm and the dropout around it are the caller's business. There is no position encoding.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from edgeattn.attention.base import EdgeForm
from edgeattn.attention.mapwise import Additive, ScaledConv, attend, check_divides, zero_layer
from edgeattn.errors import ModelError, RecipeError

__all__ = ["MultiHeadSelfAttention"]


class MultiHeadSelfAttention(Additive):
    """Multi-head self-attention, keys ``query``, ``key``, ``value``, ``proj``.

    Args:
        channels: Channels of the map.
        heads: Parts that the channels are split into.
        bias: Whether queries, keys and values have one.
        residual: Whether the result is added to the input.

    Raises:
        RecipeError: If the channels cannot be split into `heads` parts.
    """

    kind = "mhsa"

    def __init__(self, channels: int, *, heads: int = 4, bias: bool = True, residual: bool = True) -> None:
        super().__init__(channels)
        self.heads = check_divides("mhsa", "heads", heads, channels)
        self.residual = residual
        self.query = nn.Conv2d(channels, channels, 1, bias=bias)
        self.key = nn.Conv2d(channels, channels, 1, bias=bias)
        self.value = nn.Conv2d(channels, channels, 1, bias=bias)
        self.proj = nn.Conv2d(channels, channels, 1)

    @property
    def scale(self) -> float:
        """What scores are multiplied by: ``1 / sqrt(channels / heads)``."""
        return 1.0 / math.sqrt(self.channels // self.heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend over all positions of `x`, shape (N, C, H, W)."""
        return self.attend(x)[0]

    def attend(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend, and return the weights too.

        Args:
            x: (N, C, H, W).
            mask: Which keys (last axis) a query may look at: bool, broadcastable to (N, heads, HW, HW).

        Returns:
            The map (N, C, H, W) and the weights (N, heads, HW, HW), whose rows sum to 1.

        Raises:
            ModelError: If the mask is not bool, or leaves a query without any key.
        """
        rows, columns = x.shape[2:]
        query, key, value = (
            layer(x).reshape(x.shape[0], self.heads, -1, rows * columns)
            for layer in (self.query, self.key, self.value)
        )
        scores = query.transpose(2, 3) @ key * self.scale
        if mask is not None:
            if mask.dtype != torch.bool:
                raise ModelError(f"A mask for mhsa must be bool (true: may look), got {mask.dtype}.")
            if not bool(mask.any(-1).all()):
                raise ModelError("A mask for mhsa leaves a query without any key; allow at least one each.")
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = scores.softmax(-1)
        read = (weights @ value.transpose(2, 3)).transpose(2, 3)
        y: torch.Tensor = self.proj(read.reshape(x.shape))
        return (x + y if self.residual else y), weights

    def _zero_output(self) -> None:
        if not self.residual:
            raise RecipeError(
                "mhsa with residual=False passes none of its input on and cannot start as the identity. "
                "Use residual=True, or insert it with identity=False."
            )
        zero_layer(self.proj)

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _MhsaEdge(self, height, width, form)


class _MhsaEdge(EdgeForm):
    """Static shapes, the scale inside the query's weights; see `attend` for the two layouts."""

    def __init__(self, source: MultiHeadSelfAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.layout: Literal["rows", "columns"] = "rows" if form == "rows" else "columns"
        self.heads = source.heads
        self.residual = source.residual
        self.query = ScaledConv(source.query, source.scale)
        self.key, self.value, self.proj = source.key, source.value, source.proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        split = (-1, self.heads, self.channels // self.heads, self.height * self.width)
        read = attend(
            self.query(x).reshape(split),
            self.key(x).reshape(split),
            self.value(x).reshape(split),
            layout=self.layout,
        )
        y: torch.Tensor = self.proj(read.reshape(-1, self.channels, self.height, self.width))
        return x + y if self.residual else y
