"""Attentional feature fusion (AFF, arXiv 2009.14082).

``x * w + y * (1 - w)`` with ``w = sigmoid(local(s) + global(s))`` of ``s = x + y``: local is
conv-bn-relu-conv-bn with 1x1 kernels at every position, global the same on the mean over all positions.
Iterative: s is the fusion of x and y by a first module of the same kind.
Shapes: two maps (N, C, H, W) -> (N, C, H, W).

Deviations: computed as ``y + w * (x - y)``, one product less; no factor 2, which is in the authors' code and
not in the paper.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeattn.attention.layers import check_positive
from edgeattn.errors import ModelError

__all__ = ["AttentionalFusion"]


def _context(channels: int, squeezed: int, pooled: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)] if pooled else []
    layers += [nn.Conv2d(channels, squeezed, 1), nn.BatchNorm2d(squeezed), nn.ReLU()]
    layers += [nn.Conv2d(squeezed, channels, 1), nn.BatchNorm2d(channels)]
    return nn.Sequential(*layers)


class _MultiScale(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.local_context = _context(channels, squeezed, False)
        self.global_context = _context(channels, squeezed, True)

    def forward(self, x: torch.Tensor, y: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        w = (self.local_context(s) + self.global_context(s)).sigmoid()
        result: torch.Tensor = y + w * (x - y)
        return result


class AttentionalFusion(nn.Module):
    """AFF, keys ``last.{local_context,global_context}``, and ``first`` where iterative.

    Args:
        channels: Of both maps.
        reduction: Squeeze ratio; at least 1 channel is left.
        iterative: Whether the maps are joined by attention, too.

    Raises:
        RecipeError: If a value is not valid.
    """

    kind = "aff"

    def __init__(self, channels: int, *, reduction: int = 4, iterative: bool = False) -> None:
        super().__init__()
        squeezed = max(1, check_positive("channels", channels) // check_positive("reduction", reduction))
        self.first = _MultiScale(channels, squeezed) if iterative else None
        self.last = _MultiScale(channels, squeezed)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Fuse two maps of one shape.

        Raises:
            ModelError: If their shapes differ.
        """
        if x.shape != y.shape:
            raise ModelError(f"aff fuses maps of one shape, got {tuple(x.shape)} and {tuple(y.shape)}.")
        s = x + y
        if self.first is not None:
            s = self.first(x, y, s)
        result: torch.Tensor = self.last(x, y, s)
        return result
