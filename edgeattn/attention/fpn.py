"""Feature pyramid network (FPN, arXiv 1612.03144; levels P6 and P7 as in RetinaNet, arXiv 1708.02002).

Lateral 1x1 convolutions; from the coarsest level down, each is added to the next coarser one enlarged to its
size (nearest); a 3x3 convolution on every sum.
Shapes: maps (N, C_i, H / 2**i, W / 2**i) -> maps (N, C, H / 2**i, W / 2**i), finest first.

Deviations: none. P6 is a 3x3 convolution of stride 2 of the coarsest output, P7 one of ReLU(P6).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgeattn.attention.layers import check_positive
from edgeattn.attention.pyramids import check_channels, check_levels, enlarge
from edgeattn.errors import RecipeError

__all__ = ["FeaturePyramid"]


class FeaturePyramid(nn.Module):
    """FPN, keys ``lateral.{i}``, ``output.{i}`` and ``extra.{i}``.

    Args:
        in_channels: Of the levels, finest first.
        out_channels: Of every output.
        extra_levels: 0, 1 (P6) or 2 (P6 and P7).

    Raises:
        RecipeError: If a value is not valid.
    """

    kind = "fpn"

    def __init__(self, in_channels: Sequence[int], out_channels: int = 64, *, extra_levels: int = 0) -> None:
        super().__init__()
        self.channels = check_channels(self.kind, in_channels)
        check_positive("out_channels", out_channels)
        if extra_levels not in (0, 1, 2):
            raise RecipeError(f"extra_levels of {self.kind} must be 0, 1 or 2, got {extra_levels!r}.")
        self.lateral = nn.ModuleList(nn.Conv2d(count, out_channels, 1) for count in self.channels)
        self.output = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in self.channels
        )
        self.extra = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) for _ in range(extra_levels)
        )
        self.relu = nn.ReLU()

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the pyramid of `maps`, finest first.

        Raises:
            ModelError: If there is another number of maps, or their shapes do not fit.
        """
        check_levels(self.kind, maps, self.channels)
        sums = [lateral(item) for lateral, item in zip(self.lateral, maps, strict=True)]
        for level in range(len(sums) - 2, -1, -1):
            sums[level] = sums[level] + enlarge(sums[level + 1], sums[level])
        outputs = [conv(item) for conv, item in zip(self.output, sums, strict=True)]
        for place, conv in enumerate(self.extra):
            outputs.append(conv(self.relu(outputs[-1]) if place else outputs[-1]))
        return outputs
