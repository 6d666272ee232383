"""Path aggregation network (PANet, arXiv 1803.01534): an FPN, and a path from the finest level up again.

``N_0 = P_0``; ``N_{i+1} = relu(conv3x3(P_{i+1} + relu(conv3x3 of stride 2 (N_i))))``.
Shapes: as `edgeattn.attention.fpn`.

Deviations: only the pyramid; adaptive feature pooling and the fully connected fusion belong to its detection
head. Not to be confused with the few-shot PANet (`edgeattn.attention.proto_align`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgeattn.attention.fpn import FeaturePyramid

__all__ = ["PathAggregation"]


class PathAggregation(nn.Module):
    """PANet's pyramid, keys ``fpn``, ``down.{i}`` and ``merge.{i}``.

    Args:
        in_channels: Of the levels, finest first.
        out_channels: Of every output.

    Raises:
        RecipeError: If a value is not valid.
    """

    kind = "panet"

    def __init__(self, in_channels: Sequence[int], out_channels: int = 64) -> None:
        super().__init__()
        self.fpn = FeaturePyramid(in_channels, out_channels)
        steps = len(self.fpn.channels) - 1
        self.down = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) for _ in range(steps)
        )
        self.merge = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in range(steps))
        self.relu = nn.ReLU()

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the pyramid of `maps`, finest first.

        Raises:
            ModelError: If there is another number of maps, or their shapes do not fit.
        """
        pyramid = self.fpn(maps)
        outputs: list[torch.Tensor] = [pyramid[0]]
        for down, merge, item in zip(self.down, self.merge, pyramid[1:], strict=True):
            outputs.append(self.relu(merge(item + self.relu(down(outputs[-1])))))
        return outputs
