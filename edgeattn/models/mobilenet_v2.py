"""MobileNetV2 (arXiv 1801.04381) in torchvision's key layout.

``features.0`` stem, ``features.1`` ... ``features.17`` inverted residual blocks, ``features.18`` the last
1x1 convolution, ``classifier.1`` the linear layer. The global average is a module (without keys), so that
a deployed network can have a static pool in its place.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeattn.models.blocks import Classifier, ConvBnAct, round_channels

__all__ = ["InvertedResidual", "MobileNetV2"]

# expansion, channels, blocks, stride of the first block
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand (unless `expansion` is 1), depthwise 3x3, project; add the input where shapes allow."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, expansion: int, activation: str
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.use_res_connect = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvBnAct(in_channels, hidden, 1, activation=activation))
        layers += [
            ConvBnAct(hidden, hidden, 3, stride=stride, groups=hidden, activation=activation),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        y: torch.Tensor = self.conv(x)
        return x + y if self.use_res_connect else y


class MobileNetV2(Classifier):
    """MobileNetV2 of any width; see `edgeattn.models.create_model` for the arguments."""

    def __init__(self, *, num_classes: int, width: float, activation: str, dropout: float) -> None:
        super().__init__()
        channels = round_channels(32 * width)
        layers: list[nn.Module] = [ConvBnAct(3, channels, 3, stride=2, activation=activation)]
        for expansion, base, blocks, first_stride in _STAGES:
            out_channels = round_channels(base * width)
            for index in range(blocks):
                layers.append(
                    InvertedResidual(
                        channels,
                        out_channels,
                        stride=first_stride if index == 0 else 1,
                        expansion=expansion,
                        activation=activation,
                    )
                )
                channels = out_channels
        last = round_channels(1280 * max(1.0, width))
        layers.append(ConvBnAct(channels, last, 1, activation=activation))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        self.init_weights()
