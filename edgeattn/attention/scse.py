"""Concurrent spatial and channel squeeze and excitation (arXiv 1803.02579; journal form 1808.08127).

cSE: ``u_c = x * sigmoid(W2 relu(W1 mean(x)))``. sSE: ``u_s = x * sigmoid(w . x)``, a 1x1 convolution to one channel.
They are joined by their maximum, sum, product or concatenation, all of the recalibrated maps, not of the gates:
for negative values the maximum of the maps is not the map times the larger gate, and the product holds x twice.
Shapes: (N, C, H, W); gates (N, C, 1, 1) and (N, 1, H, W).

Deviations: the concatenation is brought back to C channels by a 1x1 convolution. Fully connected layers are
1x1 convolutions. The reduced width is at least 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from edgeattn.attention.base import Attention
from edgeattn.attention.layers import make_average
from edgeattn.attention.mapwise import check_choice, check_count, zero_layer
from edgeattn.errors import ModelError, RecipeError

__all__ = ["ConcurrentSqueezeExcitation"]


class ConcurrentSqueezeExcitation(Attention):
    """scSE, keys ``fc1``, ``fc2``, ``spatial``, and ``fuse`` for the concatenation.

    Args:
        channels: Channels of the map.
        reduction: Ratio of `channels` to the squeezed width; 2 in the paper.
        combine: How the two recalibrated maps are joined.

    Raises:
        RecipeError: If an option's value is not valid.
    """

    kind = "scse"

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 2,
        combine: Literal["max", "sum", "product", "concat"] = "sum",
    ) -> None:
        super().__init__(channels)
        inner = max(1, channels // check_count("scse", "reduction", reduction))
        self.combine = check_choice("scse", "combine", combine, ("max", "sum", "product", "concat"))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, inner, 1)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(inner, channels, 1)
        self.spatial = nn.Conv2d(channels, 1, 1)
        self.sigmoid = nn.Sigmoid()
        self.fuse = nn.Conv2d(2 * channels, channels, 1) if combine == "concat" else None

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`; also the edge form's formula."""
        of_channel: torch.Tensor = self.sigmoid(self.fc2(self.relu(self.fc1(self.pool(x)))))
        of_position: torch.Tensor = self.sigmoid(self.spatial(x))
        if self.combine == "sum":
            # x * a + x * b, with one pass over the map
            return x * self.apply_factor(of_channel + of_position)
        if self.combine == "max":
            return torch.maximum(x * self.apply_factor(of_channel), x * self.apply_factor(of_position))
        if self.combine == "product":
            return (x * self.apply_factor(of_channel)) * (x * of_position)
        joined = torch.cat([x * self.apply_factor(of_channel), x * self.apply_factor(of_position)], dim=1)
        if self.fuse is None:
            raise ModelError("scse lost its layer fuse; make it again with combine='concat'.")
        y: torch.Tensor = self.fuse(joined)
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        return self.compute(x)

    def _zero_gates(self) -> float:
        if self.combine == "product":
            raise RecipeError(
                "scse with combine='product' multiplies the map by itself and cannot start as the identity. "
                "Use another way to combine, or insert it with identity=False."
            )
        zero_layer(self.fc2)
        zero_layer(self.spatial)
        if self.combine == "max":
            return 0.5
        if self.fuse is not None:
            # [x / 2, x / 2] in, their sum out
            zero_layer(self.fuse)
            eye = torch.eye(self.channels).to(self.fuse.weight)
            self.fuse.weight.copy_(torch.cat([eye, eye], dim=1)[:, :, None, None])
        return 1.0

    def absorb(self, input_scale: float, gain: float = 1.0) -> float:
        """See the base; a product grows with the square of the map's scale."""
        remainder = super().absorb(input_scale, gain)
        if self.combine == "product":
            return remainder / input_scale
        if self.fuse is not None:
            # The fusing layer behind takes all of it; its bias must not be scaled.
            with torch.no_grad():
                self.fuse.weight.mul_(remainder)
            return 1.0
        return remainder

    def map_reading_weights(self) -> list[torch.Tensor]:
        """Return the first weights of both gates."""
        return [self.fc1.weight, self.spatial.weight]

    def _static_parts(self, height: int, width: int, form: str) -> dict[str, nn.Module]:
        return {"pool": make_average(form == "pool_conv", height, width)}
