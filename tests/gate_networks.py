"""A small network with two kinds of gates, whose policies tell in its logits."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeattn.attention import create_attention
from edgeattn.models import to_edge_form

SIZE = 16
GATE_SHAPE = (1, 3, SIZE, SIZE)
GATES = tuple(f"features.{index}.attention" for index in range(3))


class Net(nn.Module):
    """Three gates behind convolutions, two of Coordinate Attention and one of ECA."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for ins, outs, kind in ((3, 8, "coord"), (8, 16, "eca"), (16, 16, "coord")):
            block = OrderedDict(
                conv=nn.Conv2d(ins, outs, 3, stride=2, padding=1),
                act=nn.ReLU6(),
                attention=create_attention(kind, outs),
            )
            layers.append(nn.Sequential(block))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


def coord_and_eca() -> nn.Module:
    """Return the edge form. Its gates are steep, so that errors inside them matter."""
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        for path in GATES:
            for parameter in model.get_submodule(path).parameters():
                parameter.mul_(12)
        model.head.bias.zero_()
    return to_edge_form(model, SIZE, SIZE, materialize=True)


def contrasts(count: int, seed: int = 0) -> list[NDArray[np.float32]]:
    """Return images (1, 3, SIZE, SIZE) of very different contrast."""
    random = np.random.default_rng(seed)
    return [
        (random.standard_normal(GATE_SHAPE) * random.uniform(0.2, 3)).astype(np.float32) for _ in range(count)
    ]
