"""Self-calibrated convolution (SCNet, Liu et al., CVPR 2020; authors' code: MCG-NKU/SCNet).

The channels are halved. The first half is calibrated:
``y1 = K4(K3(x1) * sigmoid(x1 + up(K2(avgpool_r(x1)))))``; the second keeps its scale: ``y2 = K1(x2)``; both are
joined. Each of K2, K3 is a convolution and a batch norm. Shapes: (N, C, H, W) -> (N, C_out, H', W').

Deviations: up is bilinear, as in the paper; the authors' code calls ``F.interpolate`` with its default, nearest
(`upsample`). Where a map is smaller than the pool, all of it is pooled. The batch norm behind K1 and K4 is that of the network, behind the convolution replaced here. As
in their code, only K1 and K4 have the stride. Their 1x1 convolutions that halve the channels are the network's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from edgeattn.attention.base import ConvolutionAttention
from edgeattn.attention.mapwise import check_choice, check_count, conv_norm, map_size, resize
from edgeattn.errors import RecipeError

__all__ = ["SelfCalibratedConvolution"]


class SelfCalibratedConvolution(ConvolutionAttention):
    """SCConv, keys ``k1``, ``k2.{0,1}``, ``k3.{0,1}``, ``k4``.

    Args:
        in_channels: Of the map; even.
        out_channels: Of the result; even.
        kernel_size: Of all four convolutions.
        stride: Of K1 and K4.
        groups: 1, or an even number, of which each half gets one half.
        pooling_ratio: r, by which the map is pooled before K2.
        upsample: How the pooled branch gets back to the map's size.

    Raises:
        RecipeError: If channels or groups cannot be halved, or an option's value is not valid.
    """

    kind = "scconv"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        pooling_ratio: int = 4,
        upsample: Literal["bilinear", "nearest"] = "bilinear",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, groups=groups)
        if in_channels % 2 or out_channels % 2 or (groups > 1 and groups % 2):
            raise RecipeError(
                f"scconv halves its channels and groups: they must be even, got {in_channels} input and "
                f"{out_channels} output channels in {groups} groups."
            )
        self.pooling_ratio = check_count("scconv", "pooling_ratio", pooling_ratio)
        self.upsample = check_choice("scconv", "upsample", upsample, ("bilinear", "nearest"))
        half, half_out, groups = in_channels // 2, out_channels // 2, max(1, groups // 2)

        def last() -> nn.Conv2d:
            return nn.Conv2d(half, half_out, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)

        self.k1 = last()
        self.k2 = nn.Sequential(*conv_norm(half, half, kernel_size, groups=groups))
        self.k3 = nn.Sequential(*conv_norm(half, half, kernel_size, groups=groups))
        self.k4 = last()
        self.sigmoid = nn.Sigmoid()

    def begin_with(self, weight: torch.Tensor) -> bool:
        """Start near the convolution: K4 and K1 have each half's weights, and K3 passes its half on.

        What is left to learn is the gate, the batch norms, and with one group what joins one half to the other.
        """
        half, half_out = self.in_channels // 2, self.out_channels // 2
        first, second = weight[:half_out], weight[half_out:]
        if self.groups == 1:
            first, second = first[:, :half], second[:, half:]
        with torch.no_grad():
            self.k4.weight.copy_(first)
            self.k1.weight.copy_(second)
            nn.init.dirac_(self.k3.get_submodule("0").get_parameter("weight"), max(1, self.groups // 2))
        return True

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve; also the edge form's formula."""
        size = map_size(self, x)
        half = self.in_channels // 2
        calibrated, kept = x.narrow(1, 0, half), x.narrow(1, half, half)
        window = (min(self.pooling_ratio, size[0]), min(self.pooling_ratio, size[1]))
        context = resize(self.k2(functional.avg_pool2d(calibrated, window)), size, self.upsample)
        gate = self.sigmoid(calibrated + context)
        return torch.cat([self.k4(self.k3(calibrated) * gate), self.k1(kept)], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve `x`, shape (N, C, H, W)."""
        return self.compute(x)
