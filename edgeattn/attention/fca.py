"""Frequency channel attention (FcaNet, arXiv 2012.11879; authors' code: cfzd/FcaNet).

Squeeze-and-Excitation whose squeeze is not the mean but a coefficient of the 2-D discrete cosine transform:
the channels are split into as many groups as there are frequencies, and each group takes its own,
``mean over i, j of x[i, j] * cos(pi * u * (i + 0.5) / H) * cos(pi * v * (j + 0.5) / W)``.
Shapes: (N, C, H, W) -> coefficients (N, C, 1, 1) -> gate (N, C, 1, 1) -> (N, C, H, W).

Deviations: the transform is that of the map itself, where the authors' code pools every map to 7 x 7 times a
whole number first and multiplies the frequencies by that number; coefficients are means, so that frequency
(0, 0) is the squeeze of SE, where theirs have the transform's orthonormal factors, which the first layer
absorbs. The frequencies are the authors' list, best first. Where 16 of them do not divide the channels, the
largest power of two below that does is taken. The fully connected layers are 1x1 convolutions without bias,
and the squeezed width is at least 8.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from edgeattn.attention.base import Attention
from edgeattn.attention.layers import DerivedConv2d, check_positive
from edgeattn.errors import RecipeError

__all__ = ["FrequencyChannelAttention"]

# (u, v) in the order in which single frequencies did best on ImageNet in the paper.
_FREQUENCIES = (
    (0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0),
    (5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3), (3, 5), (2, 2),
)  # fmt: skip


def _basis(frequencies: list[tuple[int, int]], height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Return the cosines by frequency, divided by the number of positions, shape (F, H, W)."""
    rows = torch.arange(height, dtype=torch.float64) + 0.5
    columns = torch.arange(width, dtype=torch.float64) + 0.5
    planes = [
        torch.outer(torch.cos(math.pi * u * rows / height), torch.cos(math.pi * v * columns / width))
        for u, v in frequencies
    ]
    return (torch.stack(planes) / (height * width)).to(like)


class FrequencyChannelAttention(Attention):
    """FcaNet's layer, keys ``fc1.weight`` and ``fc2.weight``.

    Args:
        channels: Channels of the map.
        reduction: Squeeze ratio.
        frequencies: How many: 1 to 16, a divisor of `channels`; None takes the largest power of two that is
            one.

    Raises:
        RecipeError: If an option's value is not valid.
    """

    kind = "fca"

    def __init__(self, channels: int, *, reduction: int = 16, frequencies: int | None = None) -> None:
        super().__init__(channels)
        squeezed = max(8, channels // check_positive("reduction", reduction))
        count = math.gcd(channels, 16) if frequencies is None else check_positive("frequencies", frequencies)
        if count > len(_FREQUENCIES) or channels % count:
            raise RecipeError(
                f"frequencies of fca must be at most {len(_FREQUENCIES)} and divide the {channels} channels, "
                f"got {count}."
            )
        self.frequencies = [_FREQUENCIES[channel * count // channels] for channel in range(channels)]
        self.fc1 = nn.Conv2d(channels, squeezed, 1, bias=False)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(squeezed, channels, 1, bias=False)
        self.transform: nn.Module = _AnySizeTransform(self.frequencies)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`; see `edgeattn.attention.base.StaticEdge`."""
        gate: torch.Tensor = self.fc2(self.relu(self.fc1(self.transform(x)))).sigmoid()
        return x * self.apply_factor(gate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        return self.compute(x)

    def _zero_gates(self) -> float:
        self.fc2.weight.zero_()
        return 0.5

    def map_reading_weights(self) -> list[torch.Tensor]:
        """Return the squeezing layer's weight: the transform is linear."""
        return [self.fc1.weight]

    def _static_parts(self, height: int, width: int, form: str) -> dict[str, nn.Module]:
        return {"transform": _FixedTransform(self.frequencies, height, width, self.fc1.weight)}


class _AnySizeTransform(nn.Module):
    def __init__(self, frequencies: list[tuple[int, int]]) -> None:
        super().__init__()
        self.frequencies = frequencies

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        basis = _basis(self.frequencies, x.shape[2], x.shape[3], x)
        return (x * basis).sum((2, 3), keepdim=True)


class _FixedTransform(DerivedConv2d):
    """The transform as a depthwise convolution over the whole map."""

    weight: torch.Tensor

    def __init__(
        self, frequencies: list[tuple[int, int]], height: int, width: int, like: torch.Tensor
    ) -> None:
        super().__init__()
        self.groups = len(frequencies)
        self.register_buffer("weight", _basis(frequencies, height, width, like).unsqueeze(1), False)

    def derived_weight(self) -> torch.Tensor:
        return self.weight
