"""The convolution over a pooled plane (H, W), with one axis of the plane as channels."""

from __future__ import annotations

import dataclasses

import torch

from edgeattn.attention.layers import BandedConvBn, ConvBn

__all__ = ["SpatialPlane"]


@dataclasses.dataclass(frozen=True)
class SpatialPlane:
    """How two planes (N, 1, H, W) are laid out for an ordinary convolution with banded weights.

    A convolution from two channels to one leaves 15 of 16 lanes of an integer kernel idle. Which axis becomes
    channels changes no product, but what is moved: a runtime that keeps maps channels last holds (N, W, H, 1) in
    the order of the plane, so columns as channels cost it no transpose; with rows as channels the planes are only
    reshaped where maps lie channels first.

    Attributes:
        height: H.
        width: W.
        columns: Whether columns are the channels, instead of rows.
    """

    height: int
    width: int
    columns: bool

    def convolution(self, source: ConvBn) -> BandedConvBn:
        """Return the authors' layer over the plane, with H or W outputs."""
        return BandedConvBn(source, self.width if self.columns else self.height, along_width=not self.columns)

    def join(self, maximum: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Return what the convolution reads of two planes (N, 1, H, W): (N, 2W, H, 1), or (N, 2H, 1, W)."""
        if self.columns:
            return torch.cat([maximum.permute(0, 3, 2, 1), mean.permute(0, 3, 2, 1)], dim=1)
        # (N, 1, H, W) is (N, H, 1, W) in memory.
        shape = (-1, self.height, 1, self.width)
        return torch.cat([maximum.reshape(shape), mean.reshape(shape)], dim=1)

    def as_map(self, gate: torch.Tensor) -> torch.Tensor:
        """Return what the convolution wrote as (N, 1, H, W)."""
        return gate.permute(0, 3, 2, 1) if self.columns else gate.reshape(-1, 1, self.height, self.width)
