"""Global-local temporal representation (GLTR, arXiv 1908.10049).

Local: a pyramid of temporal convolutions of kernel 3 with dilations 1, 2, 4 beside each other, joined. Global:
temporal self-attention over the joined features, ``softmax(B C^T) V`` over the frames, added to them.
Shapes: (N, T, C) -> pyramid (N, T, P * C) -> attention (N, T, T) -> (N, T, P * C).

Deviations: the reduced width of B, C and V is an option, P * C / 8 by default; the last projection starts at
zero, so that training starts from the pyramid. Convolutions over time are (1, k) convolutions of (N, C, 1, T),
which every runtime has in INT8. The mean over frames, which ends the authors' network, is left to the network.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeattn.attention.layers import check_positive
from edgeattn.errors import ModelError, RecipeError

__all__ = ["GlobalLocalTemporal"]


class GlobalLocalTemporal(nn.Module):
    """GLTR, keys ``pyramid.{i}``, ``query``, ``key``, ``value`` and ``project``.

    Args:
        channels: Features of a frame.
        branches: Of the pyramid; branch i has dilation 2**i.
        reduction: Of the attention's width.

    Raises:
        RecipeError: If a value is not valid.
    """

    kind = "gltr"

    def __init__(self, channels: int, *, branches: int = 3, reduction: int = 8) -> None:
        super().__init__()
        self.channels = check_positive("channels", channels)
        self.pyramid = nn.ModuleList(
            nn.Conv2d(channels, channels, (1, 3), padding=(0, 2**i), dilation=(1, 2**i))
            for i in range(check_positive("branches", branches))
        )
        joined = branches * channels
        if joined % check_positive("reduction", reduction):
            raise RecipeError(f"reduction of gltr must divide {joined} joined channels, got {reduction}.")
        width = joined // reduction
        self.relu = nn.ReLU()
        self.query, self.key, self.value = (nn.Conv2d(joined, width, 1) for _ in range(3))
        self.project = nn.Conv2d(width, joined, 1)
        nn.init.zeros_(self.project.weight)
        if self.project.bias is not None:
            nn.init.zeros_(self.project.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Describe the frames `x`, shape (N, T, C), as (N, T, branches * C).

        Raises:
            ModelError: If `x` is no such sequence.
        """
        if x.ndim != 3 or x.shape[2] != self.channels:
            raise ModelError(f"gltr takes (N, T, {self.channels}), got {tuple(x.shape)}.")
        return self.on_rows(x.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)

    def on_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Compute the same for frames laid out as (N, C, 1, T)."""
        local = torch.cat([self.relu(conv(rows)) for conv in self.pyramid], dim=1)  # (N, P * C, 1, T)
        query, key, value = (conv(local).squeeze(2) for conv in (self.query, self.key, self.value))
        weights = torch.matmul(query.transpose(1, 2), key).softmax(2)  # (N, T, T)
        mixed = torch.matmul(value, weights.transpose(1, 2)).unsqueeze(2)  # (N, D, 1, T)
        y: torch.Tensor = local + self.project(mixed)
        return y
