"""Squeeze-and-Excitation (arXiv 1709.01507).

``x * gate(fc2(act(fc1(mean over H and W))))``.
Shapes: (N, C, H, W) -> (N, C, 1, 1) -> (N, S, 1, 1) -> (N, C, 1, 1) -> (N, C, H, W).

Deviations: the fully connected layers are 1x1 convolutions with bias under torchvision's keys ``fc1``
and ``fc2`` (its EfficientNet and MobileNetV3 use them); the squeezed width is at least 8, so that thin
MobileNet stages keep a few channels; the paper has a ReLU and a sigmoid, EfficientNet a swish, and
MobileNetV3 a hard sigmoid: all are options.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from edgeattn.attention.base import Attention, EdgeForm
from edgeattn.attention.layers import make_average
from edgeattn.errors import RecipeError, close_matches_hint

__all__ = ["SqueezeExcitation"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "swish": nn.SiLU,
    "h_swish": nn.Hardswish,
}
_GATES: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "hard_sigmoid": nn.Hardsigmoid}


def _choose(table: dict[str, type[nn.Module]], option: str, value: str) -> nn.Module:
    if value not in table:
        raise RecipeError(f"{option} of se cannot be {value!r}. {close_matches_hint(value, table)}")
    return table[value]()


class SqueezeExcitation(Attention):
    """SE, keys ``fc1`` and ``fc2``.

    Args:
        channels: Channels of the map.
        reduction: Squeeze ratio; the squeezed width is ``max(8, channels // reduction)``.
        squeeze_channels: The squeezed width itself; overrides `reduction`.
        activation: Between the two layers.
        gate: Makes the gate; both kinds are one half at zero.

    Raises:
        RecipeError: If an option's value is not valid.
    """

    kind = "se"

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        squeeze_channels: int | None = None,
        activation: Literal["relu", "relu6", "swish", "h_swish"] = "relu",
        gate: Literal["sigmoid", "hard_sigmoid"] = "sigmoid",
    ) -> None:
        super().__init__(channels)
        if reduction < 1:
            raise RecipeError(f"reduction must be positive, got {reduction}.")
        squeezed = max(8, channels // reduction) if squeeze_channels is None else squeeze_channels
        if squeezed < 1:
            raise RecipeError(f"squeeze_channels must be positive, got {squeezed}.")
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = _choose(_ACTIVATIONS, "activation", activation)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = _choose(_GATES, "gate", gate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        gate: torch.Tensor = self.gate(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return x * self.apply_factor(gate)

    def _zero_gates(self) -> float:
        self.fc2.weight.zero_()
        if self.fc2.bias is not None:
            self.fc2.bias.zero_()
        return 0.5

    def map_reading_weights(self) -> list[torch.Tensor]:
        """Return the squeezing layer's weight."""
        return [self.fc1.weight]

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _SqueezeExcitationEdge(self, height, width, form)


class _SqueezeExcitationEdge(EdgeForm):
    """The same layers behind a static pool or a reduction."""

    def __init__(self, source: SqueezeExcitation, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.avgpool = make_average(form == "pool_conv", height, width)
        self.fc1 = source.fc1
        self.activation = source.activation
        self.fc2 = source.fc2
        self.gate = source.gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        gate: torch.Tensor = self.gate(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return x * self.apply_factor(gate)
