"""Contextual Transformer block (CoTNet, arXiv 2107.12292; authors' code: JDAI-CV/CoTNet).

Static context: ``k = relu(BN(conv_kxk(x)))`` in 4 groups. Two 1x1 convolutions (ReLU between) make of [k, x] a
k x k matrix for every position and every set of `share` channels, which weighs the values around that position: the dynamic
context ``d = swish(BN(local sum))``. Both are fused by weights from their pooled sum, a softmax over the two
for each channel. Shapes: (N, C, H, W); local matrices (N, C / share, k k, H, W).

Deviations: the block is added to its input, times a learned scalar (``gamma``, 1), so that it can stand
anywhere in a trained network and start as the identity; CoTNet's bottleneck adds around it. The group norm on the
local matrices in the authors' code is not in the paper and not here.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from edgeattn.attention.base import EdgeForm
from edgeattn.attention.layers import DerivedConv2d, check_kernel_size, make_average
from edgeattn.attention.mapwise import Additive, ConstantConv, check_divides, conv_norm

__all__ = ["ContextualTransformer"]


class ContextualTransformer(Additive):
    """CoT block, keys ``key_embed.*``, ``embed.*``, ``value.*``, ``bn``, ``se.*``, ``gamma``.

    Args:
        channels: Channels of the map.
        kernel_size: Of the static context and of the local matrices.
        groups: Of the convolution of the static context.
        share: Channels that share one local matrix.

    Raises:
        RecipeError: If the kernel size is not odd, or the channels cannot be split.
    """

    kind = "cot"

    def __init__(self, channels: int, *, kernel_size: int = 3, groups: int = 4, share: int = 8) -> None:
        super().__init__(channels)
        self.kernel_size = check_kernel_size(kernel_size)
        check_divides("cot", "groups", groups, channels)
        self.share = check_divides("cot", "share", share, channels)
        self.matrices = channels // self.share
        hidden = max(1, channels // 2)
        squeezed = max(32, channels // 2)
        self.key_embed = nn.Sequential(*conv_norm(channels, channels, kernel_size, groups=groups), nn.ReLU())
        self.embed = nn.Sequential(
            *conv_norm(2 * channels, hidden), nn.ReLU(), nn.Conv2d(hidden, self.matrices * kernel_size**2, 1)
        )
        self.value = nn.Sequential(*conv_norm(channels, channels))
        self.bn = nn.BatchNorm2d(channels)
        self.se = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1), nn.BatchNorm2d(squeezed), nn.ReLU(),
            nn.Conv2d(squeezed, 2 * channels, 1),
        )  # fmt: skip
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add context to `x`, shape (N, C, H, W)."""
        batch, channels, height, width = x.shape
        static = self.key_embed(x)
        local = self.embed(torch.cat([static, x], dim=1))
        # Channel c uses matrix c % matrices.
        local = local.reshape(batch, 1, self.matrices, -1, height * width)
        around = functional.unfold(self.value(x), self.kernel_size, padding=self.kernel_size // 2)
        around = around.reshape(batch, self.share, self.matrices, -1, height * width)
        dynamic = functional.silu(self.bn((around * local).sum(3).reshape(x.shape)))
        pooled = (dynamic + static).mean((2, 3), keepdim=True)
        # Of each channel's pair the first is the dynamic context's.
        weights = self.se(pooled).reshape(batch, channels, 2).softmax(2).reshape(batch, channels, 2, 1, 1)
        return x + self.gamma * (dynamic * weights[:, :, 0] + static * weights[:, :, 1])

    def _zero_output(self) -> None:
        self.gamma.zero_()

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _ContextualEdge(self, height, width, form)


class _PairDifference(DerivedConv2d):
    """For each pair of output channels the first minus the second: a softmax of two is a sigmoid of that."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        self.weight = source.weight
        self.bias = source.bias

    def derived_weight(self) -> torch.Tensor:
        """Return the differences, shape (C, M, 1, 1)."""
        pairs = self.weight.reshape(-1, 2, *self.weight.shape[1:])
        return pairs[:, 0] - pairs[:, 1]

    def derived_bias(self) -> torch.Tensor | None:
        """Return the biases' differences."""
        if self.bias is None:
            return None
        pairs = self.bias.reshape(-1, 2)
        return pairs[:, 0] - pairs[:, 1]


class _ContextualEdge(EdgeForm):
    """The values' neighbours by one depthwise convolution with constant kernels, their sum by another.

    Both are ordinary INT8 convolutions; between them is one product with the local matrices, which
    broadcasts over the channels that share one.
    """

    def __init__(self, source: ContextualTransformer, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.key_embed, self.embed, self.value = source.key_embed, source.embed, source.value
        self.bn, self.gamma = source.bn, source.gamma
        self.share = source.share
        like, kernel = source.gamma, source.kernel_size
        taps = kernel * kernel
        one_hot = torch.eye(taps).reshape(taps, 1, kernel, kernel).repeat(self.channels, 1, 1, 1).to(like)
        self.neighbours = ConstantConv(one_hot, groups=self.channels, padding=(kernel // 2, kernel // 2))
        ones = torch.ones(self.channels, taps, 1, 1).to(like)
        self.total = ConstantConv(ones, groups=self.channels)
        # (N, share, C / share * k k * H, W): the broadcast product in four dimensions
        self.split = (-1, self.share, self.channels // self.share * taps * height, width)
        self.whole = (-1, self.channels * taps, height, width)
        self.pool = make_average(form == "pool_conv", height, width)
        last = source.se[3]
        if not isinstance(last, nn.Conv2d):
            raise TypeError(f"se.3 was replaced by {type(last).__name__}.")
        self.se = nn.Sequential(source.se[0], source.se[1], source.se[2], _PairDifference(last))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        static = self.key_embed(x)
        local = self.embed(torch.cat([static, x], dim=1))
        local = local.reshape(-1, 1, *self.split[2:])
        around = self.neighbours(self.value(x)).reshape(self.split)
        mixed = self.bn(self.total((around * local).reshape(self.whole)))
        dynamic = mixed * torch.sigmoid(mixed)
        share = torch.sigmoid(self.se(self.pool(dynamic + static)))
        rest = 1.0 - share
        y: torch.Tensor = x + (dynamic * (share * self.gamma) + static * (rest * self.gamma))
        return y
