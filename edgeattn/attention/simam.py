"""SimAM, a parameter-free attention (Yang et al., ICML 2021; authors' code: ZjjConan/SimAM).

``y = x * sigmoid(d / (4 (v + lambda)) + 0.5)`` with ``d = (x - mean)^2`` over each channel's map and
``v = sum(d) / (H W - 1)``. Shapes: (N, C, H, W); mean and v (N, C, 1, 1).

Deviations: a map of one pixel has v = 0 instead of 0 / 0.

Without parameters it has no identity start: `start_as_identity` changes nothing, see `identity_error`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from edgeattn.attention.base import Attention, EdgeForm
from edgeattn.attention.layers import make_average
from edgeattn.attention.mapwise import check_number

__all__ = ["SimpleAttention"]


class SimpleAttention(Attention):
    """SimAM, no keys.

    Args:
        channels: Channels of the map.
        e_lambda: The paper's lambda.

    Raises:
        RecipeError: If lambda is not positive.
    """

    kind = "simam"
    absorbs_input_scale: ClassVar[bool] = False
    # Gates lie between sigmoid(0.5) = 0.622 and 1.
    identity_error: ClassVar[float] = 0.378

    def __init__(self, channels: int, *, e_lambda: float = 1e-4) -> None:
        super().__init__(channels)
        self.e_lambda = check_number("simam", "e_lambda", e_lambda)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        count = max(1, x.shape[2] * x.shape[3] - 1)
        squared = (x - x.mean((2, 3), keepdim=True)).square()
        variance = squared.sum((2, 3), keepdim=True) / count
        gate = torch.sigmoid(squared / (4.0 * (variance + self.e_lambda)) + 0.5)
        return x * self.apply_factor(gate)

    def _zero_gates(self) -> float:
        return 1.0

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _SimpleEdge(self, height, width, form)


class _SimpleEdge(EdgeForm):
    """``d / (4 (v + lambda))`` as the square of ``(x - mean) * 0.5 / sqrt(v + lambda)``.

    The division happens on the pooled map, and what is left on the full map has about the same range in
    every channel and every image, as INT8 wants it: 8-bit squares of the raw map would lose channels with
    small values.
    """

    def __init__(self, source: SimpleAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.e_lambda = source.e_lambda
        pooled = form == "normalized_pool"
        self.mean = make_average(pooled, height, width)
        self.mean_square = make_average(pooled, height, width)
        # A mean of squares from the sum over H W - 1.
        self.unbiased = height * width / max(1, height * width - 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        centred = x - self.mean(x)
        variance = self.mean_square(centred * centred) * self.unbiased
        inverse = 0.5 / torch.sqrt(variance + self.e_lambda)
        normalized = centred * inverse
        gate: torch.Tensor = self.sigmoid(normalized * normalized + 0.5)
        return x * self.apply_factor(gate)
