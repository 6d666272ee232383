"""Segmentation heads around an attention, on the features of a backbone.

What their authors put around position, channel and criss-cross attention: a 3x3 convolution that narrows the
features, the attention, another 3x3 convolution, and a 1x1 convolution to the classes. Two layouts:

``"sum"`` (DANet, arXiv 1809.02983): position and channel attention stand in branches with convolutions of their
own, whose results are added. ``"concat"`` (CCNet, arXiv 1811.11721; PSANet, ECCV 2018; EncNet's head is like
it): the attended map is joined with the features.

Deviations: no dropout and no auxiliary classifier, which are matters of training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgeattn.attention import create_attention
from edgeattn.models.create import create_model
from edgeattn.models.example import Example
from edgeattn.models.tree import evaluating

__all__ = ["SegmentationHead", "SegmentationNetwork", "segmentation_example"]


def _conv_norm_relu(before: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(before, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


class SegmentationHead(nn.Module):
    """From features (N, in_channels, h, w) to logits (N, classes, h, w).

    Args:
        kind: A name in `edgeattn.attention.attentions` of the contract ``"map"``.
        in_channels: Of the features.
        classes: Of the segmentation.
        width: Of the attended map.
        **options: The mechanism's own options.

    Raises:
        RecipeError: If the kind or an option's value is not valid.
        TypeError: If an option is unknown.
    """

    def __init__(self, kind: str, in_channels: int, classes: int, width: int = 32, **options: Any) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        parts = [{"channel": False}, {"position": False}] if kind == "danet" else [{}]
        for part in parts:
            self.branches.append(
                nn.Sequential(
                    *_conv_norm_relu(in_channels, width),
                    create_attention(kind, width, **part, **options),
                    *_conv_norm_relu(width, width),
                )
            )
        self.joins = kind != "danet"
        before = in_channels + width if self.joins else width
        self.bottleneck = nn.Sequential(*_conv_norm_relu(before, width)) if self.joins else nn.Identity()
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits at the features' resolution."""
        y = self.branches[0](features)
        for branch in list(self.branches)[1:]:
            y = y + branch(features)
        if self.joins:
            y = self.bottleneck(torch.cat([features, y], dim=1))
        logits: torch.Tensor = self.classify(y)
        return logits


def _front(backbone: nn.Module) -> nn.Sequential:
    """Return the layers of a MobileNetV2 down to a sixteenth of the image: 14 in every width."""
    return nn.Sequential(*list(backbone.get_submodule("features").children())[:14])


class SegmentationNetwork(nn.Module):
    """MobileNetV2's features down to a sixteenth of the image, and a head.

    Args:
        head: Takes `feature_channels` channels.
        backbone: The MobileNetV2 whose features are read.

    Attributes:
        in_channels: Of the images.
    """

    def __init__(self, head: nn.Module, backbone: nn.Module) -> None:
        super().__init__()
        self.in_channels = 3
        self.features = _front(backbone)
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes, H / 16, W / 16) of images (N, 3, H, W)."""
        logits: torch.Tensor = self.head(self.features(x))
        return logits


def segmentation_example(kind: str, classes: int = 5, size: int = 64, **options: Any) -> Example:
    """Return a segmentation network with the mechanism in its head, on a narrow MobileNetV2.

    Args:
        kind: A name in `edgeattn.attention.attentions` of the contract ``"map"``.
        classes: Of the segmentation.
        size: Height and width of the images, a multiple of 16.
        **options: The mechanism's own options.

    Raises:
        RecipeError: If the kind or an option's value is not valid.
    """
    backbone = create_model("mobilenet_v2", num_classes=1, width=0.35)
    with evaluating(backbone), torch.no_grad():
        shape = _front(backbone)(torch.zeros(1, 3, size, size)).shape
    head = SegmentationHead(kind, shape[1], classes, **options)
    network = SegmentationNetwork(head, backbone)
    attention = head.get_submodule("branches.0.3")
    return Example(network, (1, 3, size, size), attention, (torch.randn(2, 32, *shape[2:]),))
