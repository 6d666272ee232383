"""External attention, also with several heads (arXiv 2105.02358; authors' code: MenghaoGuo/EANet).

Queries (N, C, HW) against a learned key memory: logits (N, S, HW), a softmax over the positions, then each
position's S weights are divided by their sum (double normalization); a learned value memory gives
(N, C, HW). With several heads the channels are split and all heads share both memories.
``y = x + BN(W_o read(W_q x))``.

Both memories are weights: nothing here multiplies two run-time tensors, which is what INT8 runs fastest.

Deviations: the final ReLU of the authors' code is left out (it would not let the module start as the
identity), and their tying of the memories at the start too.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeattn.attention.mapwise import Additive, check_count, check_divides, map_size, zero_layer

__all__ = ["ExternalAttention"]

# As in the authors' code; the sum is of positive numbers.
_EPSILON = 1e-9


class ExternalAttention(Additive):
    """External attention, keys ``conv1``, ``mk``, ``mv``, ``conv2.{0,1}``.

    Args:
        channels: Channels of the map.
        memory: Entries S of both memories.
        heads: Parts that the channels are split into.

    Raises:
        RecipeError: If the memory is empty or the channels cannot be split into `heads` parts.
    """

    kind = "external"

    def __init__(self, channels: int, *, memory: int = 64, heads: int = 1) -> None:
        super().__init__(channels)
        self.memory = check_count("external", "memory", memory)
        self.heads = check_divides("external", "heads", heads, channels)
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.mk = nn.Conv2d(channels // heads, memory, 1, bias=False)
        self.mv = nn.Conv2d(memory, channels // heads, 1, bias=False)
        self.conv2 = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Attend; also the edge form's formula."""
        height, width = map_size(self, x)
        query = self.conv1(x)
        if self.heads > 1:
            query = query.reshape(-1, self.channels // self.heads, height, width)
        logits = self.mk(query).reshape(-1, self.memory, height * width)
        weights = logits.softmax(2)
        weights = weights / (weights.sum(1, keepdim=True) + _EPSILON)
        read = self.mv(weights.reshape(-1, self.memory, height, width))
        if self.heads > 1:
            read = read.reshape(-1, self.channels, height, width)
        y: torch.Tensor = x + self.conv2(read)
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add attention to `x`, shape (N, C, H, W)."""
        return self.compute(x)

    def _zero_output(self) -> None:
        zero_layer(self.conv2[1])
