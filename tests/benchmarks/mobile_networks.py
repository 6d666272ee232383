"""Mobile networks that people deploy, with random weights, for timing what is done to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from edgeattn.models import create_model
from edgeattn.models.blocks import round_channels

__all__ = ["NETWORKS", "seeded"]

_Activation = Callable[[], nn.Module]


class _Gate(nn.Module):
    """Squeeze-and-Excitation (Hu et al., arXiv 1709.01507)."""

    def __init__(self, channels: int, inner: int, middle: _Activation, last: _Activation) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            middle(),
            nn.Conv2d(inner, channels, 1),
            last(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class _Block(nn.Module):
    """An inverted residual: expand, depthwise, gate, project."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        kernel: int,
        stride: int,
        activation: _Activation,
        gate: nn.Module | None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers += _layer(inputs, hidden, activation=activation)
        layers += _layer(hidden, hidden, kernel, stride, groups=hidden, activation=activation)
        layers += [] if gate is None else [gate]
        self.layers = nn.Sequential(*layers, *_layer(hidden, outputs))
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.is_residual else y


def _layer(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: _Activation | None = None,
) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), *([activation()] if activation else [])]


# Kernel, hidden channels, outputs, gate, hard swish, stride: tables 1 and 2 of Howard et al., arXiv 1905.02244.
_LARGE = (
    (3, 16, 16, 0, 0, 1),
    (3, 64, 24, 0, 0, 2),
    (3, 72, 24, 0, 0, 1),
    (5, 72, 40, 1, 0, 2),
    (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1),
    (3, 240, 80, 0, 1, 2),
    (3, 200, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1),
    (3, 672, 112, 1, 1, 1),
    (5, 672, 160, 1, 1, 2),
    (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
)
_SMALL = (
    (3, 16, 16, 1, 0, 2),
    (3, 72, 24, 0, 0, 2),
    (3, 88, 24, 0, 0, 1),
    (5, 96, 40, 1, 1, 2),
    (5, 240, 40, 1, 1, 1),
    (5, 240, 40, 1, 1, 1),
    (5, 120, 48, 1, 1, 1),
    (5, 144, 48, 1, 1, 1),
    (5, 288, 96, 1, 1, 2),
    (5, 576, 96, 1, 1, 1),
    (5, 576, 96, 1, 1, 1),
)


class _Classifier(nn.Module):
    """Layers, their mean over pixels, and what classifies it."""

    def __init__(self, layers: list[nn.Module], head: list[nn.Module]) -> None:
        super().__init__()
        self.layers, self.pool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.pool(self.layers(x)).flatten(1))
        return result


def _mobilenet_v3(blocks: tuple[tuple[int, ...], ...], last: int, hidden: int) -> nn.Module:
    layers, inputs = _layer(3, 16, 3, 2, activation=nn.Hardswish), 16
    for kernel, inner, outputs, has_gate, is_hard, stride in blocks:
        activation = nn.Hardswish if is_hard else nn.ReLU
        gate = _Gate(inner, round_channels(inner / 4), nn.ReLU, nn.Hardsigmoid) if has_gate else None
        layers.append(_Block(inputs, inner, outputs, kernel, stride, activation, gate))
        inputs = outputs
    layers += _layer(inputs, last, activation=nn.Hardswish)
    return _Classifier(layers, [nn.Linear(last, hidden), nn.Hardswish(), nn.Linear(hidden, 1000)])


NETWORKS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "mobilenet_v3_large": lambda: _mobilenet_v3(_LARGE, 960, 1280),
        "mobilenet_v3_small": lambda: _mobilenet_v3(_SMALL, 576, 1024),
        "efficientnet_b0": lambda: create_model("efficientnet_b0", num_classes=1000),
    }
)
"""By name: images (N, 3, 224, 224) to 1,000 classes. Weights follow torch's random numbers."""


def seeded(name: str) -> nn.Module:
    """Return a network with the same weights every time."""
    torch.manual_seed(0)
    return NETWORKS[name]()
