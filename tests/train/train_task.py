"""A task small enough to train in a second; imported by the tests beside it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgeattn.data import Preprocess
from edgeattn.train import TrainArrays

PREPROCESS = Preprocess(size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def build_model(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(24, classes),
    )


def build_arrays(stored: int = 8, count: int = 48) -> TrainArrays:
    """Three classes told apart by where the bright half is."""
    rng = np.random.default_rng(0)

    def make(number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(number, dtype=np.int64) % 3
        pixels = rng.integers(0, 120, (number, size, size, 3), dtype=np.uint8)
        half = size // 2
        pixels[labels == 0, :half] += 100
        pixels[labels == 1, half:] += 100
        pixels[labels == 2, :, :half] += 100
        return pixels, labels

    return TrainArrays(*make(count, stored), *make(24, 8))
