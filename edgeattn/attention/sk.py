"""Selective kernel convolution (SKNet, arXiv 1903.06586).

Branches convolve with kernels of different reach; ``U = sum of branches``, ``z = relu(bn(W mean(U)))``,
``V = sum of a_b * U_b`` with ``a = softmax over the branches of A_b z``, for each channel.
Shapes: (N, C, H, W) -> U_b (N, C', H', W') -> z (N, d, 1, 1) -> a (N, branches, C') -> (N, C', H', W').

Deviations: branch b is the same kernel with dilation b + 1, as the paper itself does for 5x5. d is
max(C' / reduction, 32) as in the paper. The A_b have no bias, as in the paper's formula. With two branches the
softmax is computed as what it is, ``sigmoid(A_1 z - A_2 z)`` and one minus that: ``V = U_2 + a_1 * (U_1 - U_2)``.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeattn.attention.base import ConvolutionAttention
from edgeattn.attention.layers import check_positive, make_average
from edgeattn.errors import RecipeError

__all__ = ["SelectiveKernel"]

_LEAST_SQUEEZED = 32


class SelectiveKernel(ConvolutionAttention):
    """SK convolution, keys ``branches.{b}.{0,1}``, ``squeeze``, ``squeeze_bn`` and ``select.{b}``.

    Args:
        in_channels: Of the map.
        out_channels: Of the result.
        kernel_size: Odd.
        stride: Of every branch.
        groups: Of every branch.
        branches: At least 2.
        reduction: Squeeze ratio.

    Raises:
        RecipeError: If an option's value is not valid.
    """

    kind = "sk"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        branches: int = 2,
        reduction: int = 16,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, groups=groups)
        if check_positive("branches", branches) < 2:
            raise RecipeError("branches of sk must be at least 2: it selects among them.")
        squeezed = max(_LEAST_SQUEEZED, out_channels // check_positive("reduction", reduction))
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(
                    in_channels,
                    out_channels,
                    kernel_size,
                    stride=stride,
                    padding=dilation * (kernel_size // 2),
                    dilation=dilation,
                    groups=groups,
                    bias=False,
                ),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            )
            for dilation in range(1, branches + 1)
        )
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(out_channels, squeezed, 1, bias=False)
        self.squeeze_bn = nn.BatchNorm2d(squeezed)
        self.relu = nn.ReLU()
        self.select = nn.ModuleList(nn.Conv2d(squeezed, out_channels, 1, bias=False) for _ in range(branches))

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve `x`; see `edgeattn.attention.base.StaticEdge`."""
        maps = [branch(x) for branch in self.branches]
        united: torch.Tensor = maps[0] + maps[1]
        for more in maps[2:]:
            united = united + more
        z = self.relu(self.squeeze_bn(self.squeeze(self.pool(united))))
        logits = [select(z) for select in self.select]
        if len(maps) == 2:
            first: torch.Tensor = (logits[0] - logits[1]).sigmoid()
            mixed: torch.Tensor = maps[1] + first * (maps[0] - maps[1])
            return mixed
        shares = torch.cat(logits, dim=2).softmax(2)  # (N, C', branches, 1)
        chosen: torch.Tensor = maps[0] * shares.narrow(2, 0, 1)
        for place, more in enumerate(maps[1:], start=1):
            chosen = chosen + more * shares.narrow(2, place, 1)
        return chosen

    def begin_with(self, weight: torch.Tensor) -> bool:
        """Start every branch with the convolution's kernel, which the dilated ones spread."""
        with torch.no_grad():
            for branch in self.branches:
                branch.get_submodule("0").get_parameter("weight").copy_(weight)
        return True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve `x`, (N, in_channels, H, W)."""
        return self.compute(x)

    def _static_parts(self, height: int, width: int, form: str) -> dict[str, nn.Module]:
        # Every branch keeps the size at stride 1 and rounds up at others.
        rows, columns = -(-height // self.stride), -(-width // self.stride)
        return {"pool": make_average(form == "pool", rows, columns)}
