"""Small networks for what precedes one: a spatial transformer and a recurrent model, for 32 x 32 digits."""

from __future__ import annotations

import torch
from torch import nn

from edgeattn.attention.ram import RecurrentAttention
from edgeattn.attention.stn import SpatialTransformer
from edgeattn.models.example import Example

__all__ = ["SIZE", "GlimpseClassifier", "TransformedClassifier", "ram_example", "stn_example"]

SIZE = 32
"""Height and width of the examples' images."""


class TransformedClassifier(nn.Module):
    """A spatial transformer before three convolutions.

    Args:
        front: The transformer, or None for the bare classifier.
        channels: Of the images.
        classes: Results.
        width: Of the first convolution.

    Attributes:
        in_channels: Of the images.
    """

    def __init__(
        self, front: SpatialTransformer | None, channels: int = 3, classes: int = 10, width: int = 16
    ) -> None:
        super().__init__()
        self.in_channels = channels
        self.front = front
        layers: list[nn.Module] = []
        before = channels
        for out in (width, 2 * width, 4 * width):
            layers += [
                nn.Conv2d(before, out, 3, 2, 1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            before = out
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Conv2d(before, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes) of images (N, C, H, W)."""
        x = x if self.front is None else self.front(x)
        logits: torch.Tensor = self.classifier(self.pool(self.features(x)))
        return logits.flatten(1)


class GlimpseClassifier(nn.Module):
    """A recurrent model of glimpses: the whole classifier.

    Attributes:
        in_channels: Of the images.
    """

    def __init__(self, front: RecurrentAttention) -> None:
        super().__init__()
        self.in_channels = front.channels
        self.front = front

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes) of images (N, C, H, W)."""
        logits: torch.Tensor = self.front(x)
        return logits


def stn_example() -> Example:
    """Return a classifier of digits behind a transformer that turns by some degrees."""
    front = SpatialTransformer(3)
    with torch.no_grad():
        # A transformer at its start would measure the identity.
        front.fc2.weight.normal_(std=0.02)
        if front.fc2.bias is not None:
            front.fc2.bias.copy_(torch.tensor([0.9, 0.3, 0.05, -0.3, 0.9, -0.1]))
    network = TransformedClassifier(front)
    bare = TransformedClassifier(None)
    bare.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("front.")})
    return Example(network, (1, 3, SIZE, SIZE), front, (torch.randn(2, 3, SIZE, SIZE),), bare)


def ram_example() -> Example:
    """Return the recurrent model with its defaults."""
    front = RecurrentAttention(3)
    inputs = (torch.randn(2, 3, SIZE, SIZE),)
    return Example(GlimpseClassifier(front), (1, 3, SIZE, SIZE), front, inputs)
