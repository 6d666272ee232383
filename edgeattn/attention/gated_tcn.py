"""Gated dilated-inception temporal convolution (MTGNN, arXiv 2005.11650).

``tanh(inception(x)) * sigmoid(inception(x))``; an inception joins temporal convolutions of kernels 2, 3, 6 and 7,
all with one dilation, each of a quarter of the channels.
Shapes: (N, C, V, T), V being variables -> (N, C', V, T).

Deviations: causal zero padding on the left keeps the length T, where the authors' network pads its input
once and cuts every branch to the length of the longest kernel; ``padded=False`` is that.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from edgeattn.attention.layers import check_positive
from edgeattn.errors import ModelError, RecipeError

__all__ = ["GatedTemporalConvolution"]

_KERNELS = (2, 3, 6, 7)


class _Inception(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, dilation: int, padded: bool) -> None:
        super().__init__()
        self.dilation, self.padded = dilation, padded
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels // len(_KERNELS), (1, kernel), dilation=(1, dilation))
            for kernel in _KERNELS
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = []
        for kernel, conv in zip(_KERNELS, self.convs, strict=True):
            reach = self.dilation * (kernel - 1)
            if self.padded:
                parts.append(conv(functional.pad(x, (reach, 0))))
            else:
                # Every branch ends at the last step; the shorter ones drop what only they can see.
                parts.append(conv(x[:, :, :, self.dilation * (max(_KERNELS) - 1) - reach :]))
        return torch.cat(parts, dim=1)


class GatedTemporalConvolution(nn.Module):
    """Gated TCN, keys ``filter.convs.{i}`` and ``gate.convs.{i}``.

    Args:
        in_channels: C.
        out_channels: C', a multiple of 4.
        dilation: In steps.
        padded: Whether the length stays.

    Raises:
        RecipeError: If a value is not valid.
    """

    kind = "gated_tcn"

    def __init__(
        self, in_channels: int, out_channels: int, *, dilation: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        check_positive("in_channels", in_channels)
        if check_positive("out_channels", out_channels) % len(_KERNELS):
            raise RecipeError(
                f"out_channels of gated_tcn must be a multiple of {len(_KERNELS)}, got {out_channels}."
            )
        self.in_channels, self.padded = in_channels, padded
        self.reach = check_positive("dilation", dilation) * (max(_KERNELS) - 1)
        self.filter = _Inception(in_channels, out_channels, dilation, padded)
        self.gate = _Inception(in_channels, out_channels, dilation, padded)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve `x`, shape (N, C, V, T), over T.

        Raises:
            ModelError: If `x` has another rank or number of channels, or is shorter than the kernels reach.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ModelError(f"gated_tcn takes (N, {self.in_channels}, V, T), got {tuple(x.shape)}.")
        if not self.padded and x.shape[3] <= self.reach:
            raise ModelError(
                f"gated_tcn without padding needs more than {self.reach} steps, got {x.shape[3]}."
            )
        y: torch.Tensor = self.filter(x).tanh() * self.gate(x).sigmoid()
        return y
