"""Dual attention: over positions and over channels (DANet, arXiv 1809.02983; authors' code: junfu1115/DANet).

Position attention: ``p_i = sum_j softmax_j(b(x_i) . c(x_j)) d(x_j)``. Channel attention: energies
``e = X X^T`` (C x C) over the flattened map, ``softmax_j(max_j e_ij - e_ij)``: channels that differ are
looked at, which is what the authors' code computes. ``y = x + alpha * p + beta * q``.
Shapes: (N, C, H, W); weights (N, HW, HW) and (N, C, C).

Deviations: in the authors' head each branch has convolutions of its own and both residuals are summed, which
is `edgeattn.models.heads`; this module shares one input and adds it once. The reduced width is at least 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from edgeattn.attention.base import EdgeForm
from edgeattn.attention.mapwise import Additive, GammaConv, attend, check_count
from edgeattn.errors import RecipeError

__all__ = ["DualAttention"]


class _Position(nn.Module):
    def __init__(
        self, query_conv: nn.Module, key_conv: nn.Module, value_conv: nn.Module, gamma: nn.Parameter
    ) -> None:
        super().__init__()
        self.query_conv = query_conv
        self.key_conv = key_conv
        self.value_conv = value_conv
        self.gamma = gamma


class _Channel(nn.Module):
    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma


class DualAttention(Additive):
    """Dual attention, keys ``pam.{query,key,value}_conv``, ``pam.gamma``, ``cam.gamma``.

    Args:
        channels: Channels of the map.
        reduction: Ratio of `channels` to the width of the position attention's queries and keys.
        position: Whether there is the attention over positions.
        channel: Whether there is the attention over channels.

    Raises:
        RecipeError: If the reduction is not positive, or both parts are left out.
    """

    kind = "danet"

    def __init__(
        self, channels: int, *, reduction: int = 8, position: bool = True, channel: bool = True
    ) -> None:
        super().__init__(channels)
        if not (position or channel):
            raise RecipeError("danet without position and channel attention computes nothing; keep one.")
        inner = max(1, channels // check_count("danet", "reduction", reduction))
        self.pam: _Position | None = None
        self.cam: _Channel | None = None
        if position:
            query, key = nn.Conv2d(channels, inner, 1), nn.Conv2d(channels, inner, 1)
            value = nn.Conv2d(channels, channels, 1)
            self.pam = _Position(query, key, value, nn.Parameter(torch.zeros(1)))
        if channel:
            self.cam = _Channel(nn.Parameter(torch.zeros(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add both attentions to `x`, shape (N, C, H, W)."""
        y = x
        flat = x.flatten(2)
        if self.pam is not None:
            query, key, value = (
                layer(x).flatten(2) for layer in (self.pam.query_conv, self.pam.key_conv, self.pam.value_conv)
            )
            y = y + self.pam.gamma * attend(query, key, value).reshape(x.shape)
        if self.cam is not None:
            energy = flat @ flat.transpose(1, 2)
            weights = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
            y = y + self.cam.gamma * (weights @ flat).reshape(x.shape)
        return y

    def _zero_output(self) -> None:
        for part in (self.pam, self.cam):
            if part is not None:
                part.gamma.zero_()

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _DualEdge(self, height, width, form)


class _DualEdge(EdgeForm):
    """Static shapes. ``max - e`` and ``-e`` have the same softmax, so the maximum is not computed."""

    def __init__(self, source: DualAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.layout: Literal["rows", "columns"] = "rows" if form == "rows" else "columns"
        self.pam: _Position | None = None
        self.cam = None if source.cam is None else _Channel(source.cam.gamma)
        if source.pam is not None:
            value = source.pam.value_conv
            if not isinstance(value, nn.Conv2d):
                raise TypeError(f"pam.value_conv was replaced by {type(value).__name__}.")
            gamma = source.pam.gamma
            self.pam = _Position(source.pam.query_conv, source.pam.key_conv, GammaConv(value, gamma), gamma)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        positions, whole = self.height * self.width, (-1, self.channels, self.height, self.width)
        y = x
        if self.pam is not None:
            query, key = self.pam.query_conv(x), self.pam.key_conv(x)
            inner = (-1, query.shape[1], positions)
            value = self.pam.value_conv(x).reshape(-1, self.channels, positions)
            y = y + attend(query.reshape(inner), key.reshape(inner), value, layout=self.layout).reshape(whole)
        if self.cam is not None:
            flat = x.reshape(-1, self.channels, positions)
            # Minus sign on the small (C, C) result; the runtimes' softmax subtracts the maximum itself.
            weights = (-(flat @ flat.transpose(1, 2))).softmax(-1)
            y = y + ((weights * self.cam.gamma) @ flat).reshape(whole)
        return y
