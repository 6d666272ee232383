"""Small networks in which temporal mechanisms work: images of digits, read as sequences of their rows."""

from __future__ import annotations

import torch
from torch import nn

from edgeattn.attention.gated_tcn import GatedTemporalConvolution
from edgeattn.attention.gltr import GlobalLocalTemporal
from edgeattn.attention.tam import TemporalAdaptive
from edgeattn.models.example import Example

__all__ = ["gated_tcn", "gltr", "tam"]

_CLASSES, _SIZE, _FEATURES, _FRAMES = 10, 32, 32, 8


class RowsByGltr(nn.Module):
    """Rows of an image are frames; a layer describes each, GLTR joins them, and their mean is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.describe = nn.Conv2d(3, _FEATURES, (1, _SIZE))
        self.relu = nn.ReLU()
        self.temporal = GlobalLocalTemporal(_FEATURES)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Conv2d(3 * _FEATURES, _CLASSES, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify (N, 3, 32, 32)."""
        rows = self.relu(self.describe(images)).transpose(2, 3)  # (N, F, 1, 32)
        logits: torch.Tensor = self.classify(self.pool(self.temporal.on_rows(rows)))
        return logits.flatten(1)


class StripsByTam(nn.Module):
    """Eight strips of four rows are frames (N, 8, F, 4, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.describe = nn.Conv2d(3, _FEATURES, 3, padding=1)
        self.relu = nn.ReLU()
        self.temporal = TemporalAdaptive(_FEATURES, _FRAMES)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Conv2d(_FEATURES, _CLASSES, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify (N, 3, 32, 32)."""
        described = self.relu(self.describe(images))
        strips = described.reshape(-1, _FEATURES, _FRAMES, _SIZE // _FRAMES, _SIZE).transpose(1, 2)
        adapted = self.temporal(strips).transpose(1, 2).reshape(-1, _FEATURES, _SIZE, _SIZE)
        logits: torch.Tensor = self.classify(self.pool(adapted))
        return logits.flatten(1)


class ColumnsByGatedTcn(nn.Module):
    """Columns of an image are variables, its rows are time: two gated layers, the second dilated."""

    def __init__(self) -> None:
        super().__init__()
        self.describe = nn.Conv2d(3, _FEATURES, 1)
        self.temporal = GatedTemporalConvolution(_FEATURES, _FEATURES)
        self.deeper = GatedTemporalConvolution(_FEATURES, _FEATURES, dilation=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Conv2d(_FEATURES, _CLASSES, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify (N, 3, 32, 32)."""
        series = self.describe(images).transpose(2, 3)  # (N, F, V, T)
        logits: torch.Tensor = self.classify(self.pool(self.deeper(self.temporal(series))))
        return logits.flatten(1)


def gltr() -> Example:
    """Return the network of rows."""
    network = RowsByGltr()
    return Example(network, (1, 3, _SIZE, _SIZE), network.temporal, (torch.randn(2, _SIZE, _FEATURES),))


def tam() -> Example:
    """Return the network of strips."""
    network = StripsByTam()
    inputs = torch.randn(2, _FRAMES, _FEATURES, _SIZE // _FRAMES, _SIZE)
    return Example(network, (1, 3, _SIZE, _SIZE), network.temporal, (inputs,))


def gated_tcn() -> Example:
    """Return the network of columns."""
    network = ColumnsByGatedTcn()
    return Example(network, (1, 3, _SIZE, _SIZE), network.temporal, (torch.randn(2, _FEATURES, 5, _SIZE),))
