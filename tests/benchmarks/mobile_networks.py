"""Mobile networks that people deploy, with random weights, for timing what is done to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from edgeattn.models import create_model
from edgeattn.models.blocks import round_channels

__all__ = ["NETWORKS", "SIZES", "seeded"]

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


class _Encoder(nn.Module):
    """Attention over tokens (N, T, C) and a perceptron, each behind a norm (Vaswani et al., arXiv 1706.03762)."""

    def __init__(self, channels: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, channels // heads
        self.norm, self.mixed = nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)
        self.result = nn.Linear(channels, channels)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, channels = x.shape
        parts = self.mixed(self.norm(x)).reshape(count, tokens, 3, self.heads, self.size)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query @ key.transpose(2, 3) * self.size**-0.5).softmax(3)
        x = x + self.result((weights @ value).transpose(1, 2).reshape(count, tokens, channels))
        y: Tensor = x + self.perceptron(x)
        return y


class _MobileViT(nn.Module):
    """Encoders over the pixels of equal place in patches of 2x2 (Mehta and Rastegari, arXiv 2110.02178)."""

    def __init__(self, channels: int, inner: int, encoders: int, heads: int = 4) -> None:
        super().__init__()
        self.local = nn.Sequential(
            *_layer(channels, channels, 3, activation=nn.SiLU), nn.Conv2d(channels, inner, 1, bias=False)
        )
        self.encoders = nn.Sequential(*(_Encoder(inner, 2 * inner, heads) for _ in range(encoders)))
        self.norm = nn.LayerNorm(inner)
        self.back = nn.Sequential(*_layer(inner, channels, activation=nn.SiLU))
        self.fused = nn.Sequential(*_layer(2 * channels, channels, 3, activation=nn.SiLU))

    def forward(self, x: Tensor) -> Tensor:
        y = self.local(x)
        count, channels, height, width = y.shape
        y = y.reshape(count * channels * height // 2, 2, width // 2, 2).transpose(1, 2)
        y = (
            y.reshape(count, channels, height * width // 4, 4)
            .transpose(1, 3)
            .reshape(count * 4, -1, channels)
        )
        y = self.norm(self.encoders(y)).reshape(count, 4, -1, channels).transpose(1, 3)
        y = y.reshape(count * channels * height // 2, width // 2, 2, 2).transpose(1, 2)
        y = self.back(y.reshape(count, channels, height, width))
        result: Tensor = self.fused(torch.cat([x, y], 1))
        return result


def _mobilevit_xxs() -> nn.Module:
    layers, inputs = _layer(3, 16, 3, 2, activation=nn.SiLU), 16
    # Outputs, stride, channels and number of encoders.
    for outputs, stride, inner, encoders in (
        (16, 1, 0, 0),
        (24, 2, 0, 0),
        (24, 1, 0, 0),
        (24, 1, 0, 0),
        (48, 2, 64, 2),
        (64, 2, 80, 4),
        (80, 2, 96, 3),
    ):
        layers.append(_Block(inputs, 2 * inputs, outputs, 3, stride, nn.SiLU, None))
        layers += [_MobileViT(outputs, inner, encoders)] if encoders else []
        inputs = outputs
    layers += _layer(inputs, 320, activation=nn.SiLU)
    return _Classifier(layers, [nn.Linear(320, 1000)])


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
        "mobilevit_xxs": _mobilevit_xxs,
    }
)
"""By name: images (N, 3, size, size) to 1,000 classes. Weights follow torch's random numbers."""
SIZES: Mapping[str, int] = MappingProxyType(
    {"mobilenet_v3_large": 224, "mobilenet_v3_small": 224, "efficientnet_b0": 224, "mobilevit_xxs": 256}
)
"""Height and width of a network's images, as its paper has them."""


def seeded(name: str) -> nn.Module:
    """Return a network with the same weights every time."""
    torch.manual_seed(0)
    return NETWORKS[name]()
