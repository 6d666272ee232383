"""InfoNCE, as the normalized temperature-scaled cross-entropy of SimCLR (arXiv 2002.05709).

Two views of each of N images, embedded. For each of the 2N embeddings, the other view of its image must be found
among the 2N - 1 others: the cross-entropy of ``cos / temperature``, averaged.
Shapes: two (N, D) -> scalar.

Deviations: none.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from edgeattn.errors import ModelError, RecipeError

__all__ = ["InfoNce"]


class InfoNce(nn.Module):
    """The criterion; no parameters.

    Args:
        temperature: Of the softmax.

    Raises:
        RecipeError: If it is not positive.
    """

    kind = "info_nce"

    def __init__(self, *, temperature: float = 0.5) -> None:
        super().__init__()
        if not temperature > 0:
            raise RecipeError(f"temperature of info_nce must be positive, got {temperature!r}.")
        self.temperature = temperature

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the loss of two views' embeddings, row by row of the same image.

        Raises:
            ModelError: If they are not two matrices of one shape with at least two rows.
        """
        if first.ndim != 2 or first.shape != second.shape or first.shape[0] < 2:
            raise ModelError(
                f"info_nce takes two (N, D) with N of at least 2, got {tuple(first.shape)} and "
                f"{tuple(second.shape)}."
            )
        both = functional.normalize(torch.cat([first, second]), dim=1)
        count = first.shape[0]
        logits = both @ both.T / self.temperature
        itself = torch.eye(2 * count, dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(itself, float("-inf"))
        other = (torch.arange(2 * count, device=logits.device) + count) % (2 * count)
        return functional.cross_entropy(logits, other)
