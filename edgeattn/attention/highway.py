"""Highway layer (arXiv 1505.00387), convolutional.

``H(x) * T(x) + x * (1 - T(x))`` with ``H = relu(conv(x))`` and the transform gate ``T = sigmoid(conv(x))``, whose
bias starts negative, so that a deep network carries its input at first.
Shapes: (N, C, H, W) throughout.

Deviations: none in the function; it is computed as ``x + T * (H - x)``, one product less. 1x1 kernels by default,
which cost a mobile network least.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from edgeattn.attention.base import Attention
from edgeattn.attention.layers import check_kernel_size

__all__ = ["Highway"]

_START_BIAS = -6.0


class Highway(Attention):
    """Highway layer, keys ``transform`` and ``gate``.

    Args:
        channels: Channels of the map.
        kernel_size: Odd, of both convolutions.
        gate_bias: What the gate's bias starts at.

    Raises:
        RecipeError: If an option's value is not valid.
    """

    kind = "highway"
    absorbs_input_scale: ClassVar[bool] = False
    # A gate that is shut for good could not be trained: it starts at sigmoid(-6) = 0.0025.
    identity_error: ClassVar[float] = 0.0025

    def __init__(self, channels: int, *, kernel_size: int = 1, gate_bias: float = -2.0) -> None:
        super().__init__(channels)
        padding = check_kernel_size(kernel_size) // 2
        self.transform = nn.Conv2d(channels, channels, kernel_size, padding=padding)
        self.relu = nn.ReLU()
        self.gate = nn.Conv2d(channels, channels, kernel_size, padding=padding)
        if self.gate.bias is not None:
            nn.init.constant_(self.gate.bias, gate_bias)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Mix `x` and what it becomes; see `edgeattn.attention.base.StaticEdge`."""
        gate = self.gate(x).sigmoid()
        y: torch.Tensor = x + gate * (self.relu(self.transform(x)) - x)
        return self.apply_factor(y)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix `x`, shape (N, C, H, W), and what it becomes."""
        return self.compute(x)

    def _zero_gates(self) -> float:
        self.gate.weight.zero_()
        if self.gate.bias is not None:
            self.gate.bias.fill_(_START_BIAS)
        nn.init.dirac_(self.transform.weight)
        if self.transform.bias is not None:
            self.transform.bias.zero_()
        return 1.0
