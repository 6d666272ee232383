"""Dynamic convolution (arXiv 1912.03458).

As CondConv (`edgeattn.attention.condconv`), with ``alpha = softmax(fc2(relu(fc1(mean of x))) / temperature)``:
the weights of the kernels sum to one. A high temperature keeps them near uniform while kernels are young.
Shapes: (N, C, H, W) -> alpha (N, K, 1, 1) -> (N, C', H', W').

Deviations: no bias in the convolution, because a batch norm follows. The temperature is an attribute that
stays as it is set; the paper brings it from 30 to 1 over the first ten epochs.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeattn.attention.condconv import ExpertConvolution
from edgeattn.attention.layers import check_positive
from edgeattn.errors import RecipeError

__all__ = ["DynamicConvolution"]


class DynamicConvolution(ExpertConvolution):
    """Dynamic convolution, keys ``experts.{i}.weight`` and ``routing.{fc1,fc2}``.

    Args:
        in_channels: Of the map.
        out_channels: Of the result.
        kernel_size: Odd.
        stride: Of the convolution.
        groups: Of the convolution.
        experts: K.
        reduction: Squeeze ratio of the attention.
        temperature: Of the softmax.

    Raises:
        RecipeError: If a value is not valid.
    """

    kind = "dynamicconv"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        experts: int = 4,
        reduction: int = 4,
        temperature: float = 1.0,
    ) -> None:
        if not temperature > 0:
            raise RecipeError(f"temperature of dynamicconv must be positive, got {temperature!r}.")
        self._attention = (check_positive("reduction", reduction), float(temperature))
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, groups=groups, experts=experts
        )

    def _make_routing(self, experts: int) -> nn.Module:
        reduction, temperature = self._attention
        return _SoftmaxRouting(self.in_channels, max(4, self.in_channels // reduction), experts, temperature)


class _SoftmaxRouting(nn.Module):
    def __init__(self, channels: int, squeezed: int, experts: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(squeezed, experts, 1)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc2(self.relu(self.fc1(pooled)))
        if self.temperature != 1.0:
            logits = logits * (1.0 / self.temperature)
        return logits.softmax(1)
