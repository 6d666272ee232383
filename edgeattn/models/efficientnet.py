"""EfficientNet-B0 and -Lite0 (arXiv 1905.11946) in torchvision's key layout.

``features.0`` stem, ``features.{1..7}.{i}.block`` MBConv blocks, ``features.8`` the last 1x1 convolution,
``classifier.1`` the linear layer. Within a block: expansion ``0`` (absent in the first stage), depthwise,
Squeeze-and-Excitation ``fc1``/``fc2`` (absent in Lite0, whose later indices move up by one), projection.

Deviations: no stochastic depth. B0 with ``activation="h_swish"`` has h-swish where the paper has swish,
inside Squeeze-and-Excitation too: INT8 runtimes have it in integers. Lite0 differs from B0 as its
authors' release does: no Squeeze-and-Excitation, ReLU6, and a stem and head that `width` does not scale.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import nn

from edgeattn.attention.se import SqueezeExcitation
from edgeattn.models.blocks import Classifier, ConvBnAct, round_channels

__all__ = ["EfficientNetB0", "EfficientNetLite0", "MBConv"]

# expansion, kernel, stride of the first block, channels, blocks
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_SeActivation = Literal["relu", "relu6", "swish", "h_swish"]


class MBConv(nn.Module):
    """Expand, depthwise, Squeeze-and-Excitation (optional), project; add the input where shapes allow."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int,
        expansion: int,
        activation: str,
        has_se: bool,
    ) -> None:
        super().__init__()
        hidden = round_channels(in_channels * expansion)
        self.use_res_connect = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if hidden != in_channels:
            layers.append(ConvBnAct(in_channels, hidden, 1, activation=activation))
        layers.append(
            ConvBnAct(hidden, hidden, kernel_size, stride=stride, groups=hidden, activation=activation)
        )
        if has_se:
            layers.append(
                SqueezeExcitation(
                    hidden,
                    squeeze_channels=max(1, in_channels // 4),
                    activation=cast(_SeActivation, activation),
                )
            )
        layers.append(ConvBnAct(hidden, out_channels, 1, activation=None))
        self.block = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        y: torch.Tensor = self.block(x)
        return x + y if self.use_res_connect else y


class _EfficientNet(Classifier):
    def __init__(
        self,
        *,
        num_classes: int,
        width: float,
        activation: str,
        dropout: float,
        has_se: bool,
        fixed_ends: bool,
    ) -> None:
        super().__init__()
        channels = 32 if fixed_ends else round_channels(32 * width)
        layers: list[nn.Module] = [ConvBnAct(3, channels, 3, stride=2, activation=activation)]
        for expansion, kernel_size, first_stride, base, blocks in _STAGES:
            out_channels = round_channels(base * width)
            stage: list[nn.Module] = []
            for index in range(blocks):
                stage.append(
                    MBConv(
                        channels,
                        out_channels,
                        kernel_size=kernel_size,
                        stride=first_stride if index == 0 else 1,
                        expansion=expansion,
                        activation=activation,
                        has_se=has_se,
                    )
                )
                channels = out_channels
            layers.append(nn.Sequential(*stage))
        last = 1280 if fixed_ends else 4 * channels
        layers.append(ConvBnAct(channels, last, 1, activation=activation))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        self.init_weights()


class EfficientNetB0(_EfficientNet):
    """EfficientNet-B0; see `edgeattn.models.create_model` for the arguments."""

    def __init__(self, *, num_classes: int, width: float, activation: str, dropout: float) -> None:
        super().__init__(
            num_classes=num_classes,
            width=width,
            activation=activation,
            dropout=dropout,
            has_se=True,
            fixed_ends=False,
        )


class EfficientNetLite0(_EfficientNet):
    """EfficientNet-Lite0; see `edgeattn.models.create_model` for the arguments."""

    def __init__(self, *, num_classes: int, width: float, activation: str, dropout: float) -> None:
        super().__init__(
            num_classes=num_classes,
            width=width,
            activation=activation,
            dropout=dropout,
            has_se=False,
            fixed_ends=True,
        )
