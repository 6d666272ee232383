"""Adaptively spatial feature fusion (ASFF, arXiv 1911.09516).

Three levels are brought to the size and channels of one of them and summed with weights that are a softmax over
the levels at every position: ``a x_0 + b x_1 + c x_2``. Finer levels come by a 3x3 convolution of stride 2 (after
a max pool of stride 2 where they are two levels finer), coarser ones by a 1x1 convolution and nearest enlarging.
Shapes: maps (N, C_i, H / 2**i, W / 2**i) -> (N, C_level, H / 2**level, W / 2**level).

Deviations: none in the fusion; weights come from 1x1 convolutions to `squeezed` channels each and one to three,
as in the authors' code; batch norms without activation there, the 3x3 convolution at the end has one with
ReLU6, where the authors have leaky ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgeattn.attention.layers import check_positive
from edgeattn.attention.pyramids import check_channels, check_levels, enlarge
from edgeattn.errors import RecipeError

__all__ = ["AdaptiveSpatialFusion"]

_LEVELS = 3


def _conv_bn(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class AdaptiveSpatialFusion(nn.Module):
    """ASFF for one level, keys ``resize.{i}``, ``compress.{i}``, ``weigh`` and ``expand``.

    Args:
        in_channels: Of the three levels, finest first.
        level: Which one the result belongs to: 0, 1 or 2.
        squeezed: Channels of each level from which weights are made.

    Raises:
        RecipeError: If a value is not valid.
    """

    kind = "asff"

    def __init__(self, in_channels: Sequence[int], level: int = 0, *, squeezed: int = 8) -> None:
        super().__init__()
        self.channels = check_channels(self.kind, in_channels, _LEVELS)
        if len(self.channels) != _LEVELS or level not in range(_LEVELS):
            raise RecipeError(
                f"asff fuses three levels into level 0, 1 or 2, got {in_channels} and {level!r}."
            )
        check_positive("squeezed", squeezed)
        self.level = level
        width = self.channels[level]
        self.resize = nn.ModuleList(self._resizing(index, width) for index in range(_LEVELS))
        self.compress = nn.ModuleList(_conv_bn(width, squeezed, 1) for _ in range(_LEVELS))
        self.weigh = nn.Conv2d(_LEVELS * squeezed, _LEVELS, 1)
        self.expand = nn.Sequential(*_conv_bn(width, width, 3), nn.ReLU6())

    def _resizing(self, index: int, width: int) -> nn.Module:
        steps = self.level - index
        if steps == 0:
            return nn.Identity()
        if steps < 0:
            return _conv_bn(self.channels[index], width, 1)
        conv = _conv_bn(self.channels[index], width, 3, 2)
        return conv if steps == 1 else nn.Sequential(nn.MaxPool2d(3, 2, 1), *conv)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Fuse three maps, finest first.

        Raises:
            ModelError: If there is another number of maps, or their shapes do not fit.
        """
        check_levels(self.kind, maps, self.channels)
        alike = [resize(item) for resize, item in zip(self.resize, maps, strict=True)]
        alike = [
            enlarge(item, maps[self.level]) if index > self.level else item
            for index, item in enumerate(alike)
        ]
        parts = [compress(item) for compress, item in zip(self.compress, alike, strict=True)]
        shares = self.weigh(torch.cat(parts, dim=1)).softmax(1)
        fused = alike[0] * shares.narrow(1, 0, 1)
        for index, item in enumerate(alike[1:], start=1):
            fused = fused + item * shares.narrow(1, index, 1)
        result: torch.Tensor = self.expand(fused)
        return result
