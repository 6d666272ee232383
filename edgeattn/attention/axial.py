"""Axial attention: along the rows, then along the columns (arXiv 1912.12180).

Multi-head self-attention in which a position sees only its own row (W keys), then the same with its own
parameters along its column (H keys); each is added to its input. Shapes: (N, C, H, W); weights
(N heads, H, W, W) and (N heads, W, H, H).

Deviations: the paper's blocks also hold layer norms, an MLP and shifts for autoregressive models; here are the
two attentions alone. There is no position encoding.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from edgeattn.attention.base import EdgeForm
from edgeattn.attention.mapwise import Additive, ScaledConv, check_divides, zero_layer

__all__ = ["AxialAttention"]


class _Axis(nn.Module):
    """The four projections of the attention along one axis."""

    def __init__(self, query: nn.Module, key: nn.Module, value: nn.Module, proj: nn.Module) -> None:
        super().__init__()
        self.query = query
        self.key = key
        self.value = value
        self.proj = proj


def _make_axis(channels: int) -> _Axis:
    query, key, value = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(3))
    return _Axis(query, key, value, nn.Conv2d(channels, channels, 1))


class AxialAttention(Additive):
    """Row and column attention, keys ``row.{query,key,value,proj}`` and ``column.*``.

    Args:
        channels: Channels of the map.
        heads: Parts that the channels are split into.

    Raises:
        RecipeError: If the channels cannot be split into `heads` parts.
    """

    kind = "axial"

    def __init__(self, channels: int, *, heads: int = 4) -> None:
        super().__init__(channels)
        self.heads = check_divides("axial", "heads", heads, channels)
        self.row = _make_axis(channels)
        self.column = _make_axis(channels)

    @property
    def scale(self) -> float:
        """What scores are multiplied by: ``1 / sqrt(channels / heads)``."""
        return 1.0 / math.sqrt(self.channels // self.heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend along the rows of `x`, shape (N, C, H, W), then along its columns."""
        for axis, along_width in ((self.row, True), (self.column, False)):
            query, key, value = (
                layer(x).unflatten(1, (self.heads, -1)) for layer in (axis.query, axis.key, axis.value)
            )
            if along_width:
                weights = torch.einsum("nedhw,nedhk->nehwk", query * self.scale, key).softmax(-1)
                read = torch.einsum("nehwk,nedhk->nedhw", weights, value)
            else:
                weights = torch.einsum("nedhw,nedkw->nehwk", query * self.scale, key).softmax(-1)
                read = torch.einsum("nehwk,nedkw->nedhw", weights, value)
            x = x + axis.proj(read.flatten(1, 2))
        return x

    def _zero_output(self) -> None:
        zero_layer(self.row.proj)
        zero_layer(self.column.proj)

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _AxialEdge(self, height, width, form)


class _AxialEdge(EdgeForm):
    """Batched MatMul of four dimensions, heads folded into the batch, the scale inside the weights."""

    def __init__(self, source: AxialAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.heads = source.heads
        self.row = self._make_axis(source.row, source.scale)
        self.column = self._make_axis(source.column, source.scale)

    @staticmethod
    def _make_axis(axis: _Axis, scale: float) -> _Axis:
        query = axis.query
        if not isinstance(query, nn.Conv2d):
            raise TypeError(f"The query layer was replaced by {type(query).__name__}.")
        return _Axis(ScaledConv(query, scale), axis.key, axis.value, axis.proj)

    def _read(self, axis: _Axis, x: torch.Tensor, along_width: bool) -> torch.Tensor:
        shape = (-1, self.channels // self.heads, self.height, self.width)
        query, key, value = (layer(x).reshape(shape) for layer in (axis.query, axis.key, axis.value))
        if along_width:
            # (B, H, W, d) @ (B, H, d, W) -> (B, H, W, W); values (B, H, W, d)
            scores = query.permute(0, 2, 3, 1) @ key.permute(0, 2, 1, 3)
            read = scores.softmax(-1) @ value.permute(0, 2, 3, 1)
            return read.permute(0, 3, 1, 2)
        scores = query.permute(0, 3, 2, 1) @ key.permute(0, 3, 1, 2)  # (B, W, H, H)
        read = scores.softmax(-1) @ value.permute(0, 3, 2, 1)
        return read.permute(0, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        whole = (-1, self.channels, self.height, self.width)
        x = x + self.row.proj(self._read(self.row, x, True).reshape(whole))
        y: torch.Tensor = x + self.column.proj(self._read(self.column, x, False).reshape(whole))
        return y
