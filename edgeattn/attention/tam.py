"""Temporal adaptive module (TANet, arXiv 2005.06803).

Local: a gate for every channel and frame from two temporal convolutions, ``x * sigmoid(conv(relu(bn(conv))))``.
Global: a kernel of K taps for every channel, ``softmax(W2 relu(bn(W1 mean)))`` over the taps, convolved over time.
Both read the frames' means. Shapes: (N, T, C, H, W) -> means (N, C, 1, T) -> gate (N, C, 1, T), kernel
(N, C, 1, K) -> (N, T, C, H, W).

Deviations: none in the function. The temporal convolution with a run-time kernel, which no INT8 kernel takes,
is a sum of K shifted maps times the kernel's taps, with zeros before the first frame and behind the last.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeattn.attention.layers import check_kernel_size, check_positive
from edgeattn.errors import ModelError

__all__ = ["TemporalAdaptive"]


class TemporalAdaptive(nn.Module):
    """TAM, keys ``local.{0,1,3}`` and ``kernel.{0,1,3}``.

    Args:
        channels: Of a frame.
        frames: T, which the global branch's first layer has as its inputs.
        kernel_size: K, odd.
        reduction: Squeeze ratio of the local branch.
        expansion: Width of the global branch's hidden layer, in frames.

    Raises:
        RecipeError: If a value is not valid.
    """

    kind = "tam"

    def __init__(
        self, channels: int, frames: int, *, kernel_size: int = 3, reduction: int = 4, expansion: int = 2
    ) -> None:
        super().__init__()
        self.channels, self.frames = check_positive("channels", channels), check_positive("frames", frames)
        self.kernel_size = check_kernel_size(kernel_size)
        hidden = max(1, channels // check_positive("reduction", reduction))
        wide = frames * check_positive("expansion", expansion)
        self.local = nn.Sequential(
            nn.Conv2d(channels, hidden, (1, 3), padding=(0, 1), bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.Sigmoid(),
        )
        # Frames are this branch's channels: the same two layers serve every channel of the map.
        self.kernel = nn.Sequential(
            nn.Conv2d(frames, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, kernel_size, 1, bias=False),
            nn.Softmax(1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adapt the frames `x`, shape (N, T, C, H, W).

        Raises:
            ModelError: If `x` is no such sequence.
        """
        if x.ndim != 5 or tuple(x.shape[1:3]) != (self.frames, self.channels):
            raise ModelError(f"tam takes (N, {self.frames}, {self.channels}, H, W), got {tuple(x.shape)}.")
        means = x.mean((3, 4))  # (N, T, C)
        gate = self.local(means.transpose(1, 2).unsqueeze(2))  # (N, C, 1, T)
        taps = self.kernel(means.unsqueeze(3))  # (N, K, C, 1)
        gated = x * gate.squeeze(2).transpose(1, 2).unsqueeze(3).unsqueeze(4)
        reach = self.kernel_size // 2
        blank = torch.zeros_like(gated[:, :1])
        padded = torch.cat([*[blank] * reach, gated, *[blank] * reach], dim=1)
        parts = [
            padded.narrow(1, k, self.frames) * taps.narrow(1, k, 1).unsqueeze(4)
            for k in range(self.kernel_size)
        ]
        y: torch.Tensor = parts[0]
        for part in parts[1:]:
            y = y + part
        return y
