"""Conditionally parameterized convolution (CondConv, arXiv 1904.04971).

A convolution whose kernel is a mixture of the experts' kernels with weights from the input,
``(sum of alpha_i * W_i) conv x`` with ``alpha = sigmoid(fc(mean of x))``.
Shapes: (N, C, H, W) -> alpha (N, E, 1, 1) -> (N, C', H', W').

A kernel that is computed from the input cannot be quantized beforehand, and no INT8 kernel takes one. The
edge form is the other side of the distributive law, ``sum of alpha_i * (W_i conv x)``: E static convolutions
and a weighted sum. It costs E times the multiplications, which is little for a depthwise convolution.

Deviations: 4 experts by default, where the paper has 8; no bias, because a batch norm follows.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from edgeattn.attention.base import ConvolutionAttention, EdgeForm
from edgeattn.attention.layers import check_positive, make_average

__all__ = ["ConditionalConvolution", "ExpertConvolution"]


class ExpertConvolution(ConvolutionAttention):
    """What CondConv and dynamic convolution share: experts, their mixture, and the parallel form.

    Args:
        in_channels: Of the map.
        out_channels: Of the result.
        kernel_size: Odd.
        stride: Of the convolution.
        groups: Of the convolution.
        experts: How many kernels.

    Raises:
        RecipeError: If a value is not valid.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        experts: int = 4,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, groups=groups)
        convolutions = [
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride=stride,
                padding=kernel_size // 2,
                groups=groups,
                bias=False,
            )
            for _ in range(check_positive("experts", experts))
        ]
        for expert in convolutions:
            nn.init.kaiming_normal_(expert.weight, mode="fan_out")
        self.experts = nn.ModuleList(convolutions)
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.routing = self._make_routing(experts)

    def _make_routing(self, experts: int) -> nn.Module:
        """Return what makes the weights of the experts, (N, E, 1, 1), from the pooled map (N, C, 1, 1)."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve each map of `x`, (N, in_channels, H, W), with its own mixture of kernels."""
        n, channels, height, width = x.shape
        weights = torch.stack(
            [expert.get_parameter("weight") for expert in self.experts]
        )  # (E, out, in/groups, k, k)
        alpha = self.routing(self.pool(x)).flatten(1)  # (N, E)
        mixed = torch.einsum("ne,eoikl->noikl", alpha, weights).flatten(0, 1)
        # One group of groups for each image: the usual way to give every image its own kernel.
        y = functional.conv2d(
            x.reshape(1, n * channels, height, width),
            mixed,
            stride=self.stride,
            padding=self.kernel_size // 2,
            groups=n * self.groups,
        )
        return y.reshape(n, self.out_channels, y.shape[2], y.shape[3])

    def begin_with(self, weight: torch.Tensor) -> bool:
        """Start near the convolution: each expert has its kernel, by the sum of the weights for a map of zeros."""
        with torch.no_grad():
            total = self.routing(weight.new_zeros(1, self.in_channels, 1, 1)).sum()
            for expert in self.experts:
                expert.get_parameter("weight").copy_(weight / total)
        return True

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _ParallelExperts(self, height, width, form)


class _ParallelExperts(EdgeForm):
    """Static convolutions beside each other, and their weighted sum."""

    def __init__(self, source: ExpertConvolution, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.experts, self.routing = source.experts, source.routing
        self.pool = make_average(form == "parallel", height, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        alpha = self.routing(self.pool(x))
        parts = [expert(x) * alpha.narrow(1, i, 1) for i, expert in enumerate(self.experts)]
        y: torch.Tensor = parts[0]
        for part in parts[1:]:
            y = y + part
        return y


class ConditionalConvolution(ExpertConvolution):
    """CondConv, keys ``experts.{i}.weight`` and ``routing.0``; see `ExpertConvolution` for the arguments."""

    kind = "condconv"

    def _make_routing(self, experts: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(self.in_channels, experts, 1), nn.Sigmoid())
