"""Strip pooling (SPNet, arXiv 2003.13328; authors' code: houqb/SPNet, ``SPBlock``).

The means of rows and of columns are convolved along the axis that is left (3x1 and 1x3, batch norm),
expanded to the map, added; ReLU, a 1x1 convolution and a sigmoid make the gate.
Shapes: (N, C, H, W); strips (N, M, H, 1) and (N, M, 1, W); gate (N, C, H, W).

Deviations: none in the function; the expansion is left to the sum's broadcasting. `reduction` gives the width M
inside, which is C in the authors' code.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeattn.attention.base import Attention
from edgeattn.attention.layers import Mean, make_average
from edgeattn.attention.mapwise import check_count, conv_norm, zero_layer

__all__ = ["StripPooling"]


class StripPooling(Attention):
    """Strip pooling, keys ``conv1``, ``bn1``, ``conv2``, ``bn2``, ``conv3``.

    Args:
        channels: Channels of the map.
        reduction: Ratio of `channels` to the width inside.

    Raises:
        RecipeError: If the reduction is not positive.
    """

    kind = "strip"

    def __init__(self, channels: int, *, reduction: int = 1) -> None:
        super().__init__(channels)
        inner = max(1, channels // check_count("strip", "reduction", reduction))
        self.pool_w = Mean(3)
        self.pool_h = Mean(2)
        self.conv1, self.bn1 = conv_norm(channels, inner, (3, 1))
        self.conv2, self.bn2 = conv_norm(channels, inner, (1, 3))
        self.relu = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, channels, 1)
        self.sigmoid = nn.Sigmoid()

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`; also the edge form's formula."""
        of_rows = self.bn1(self.conv1(self.pool_w(x)))  # (N, M, H, 1)
        of_columns = self.bn2(self.conv2(self.pool_h(x)))  # (N, M, 1, W)
        gate: torch.Tensor = self.sigmoid(self.conv3(self.relu(of_rows + of_columns)))
        return x * self.apply_factor(gate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        return self.compute(x)

    def _zero_gates(self) -> float:
        zero_layer(self.conv3)
        return 0.5

    def map_reading_weights(self) -> list[torch.Tensor]:
        """Return the weights of both strips' convolutions."""
        return [layer.weight for layer in (self.conv1, self.conv2) if isinstance(layer, nn.Conv2d)]

    def _static_parts(self, height: int, width: int, form: str) -> dict[str, nn.Module]:
        pooled = form == "pool_conv"
        return {
            "pool_w": make_average(pooled, None, width),
            "pool_h": make_average(pooled, height, None),
        }
