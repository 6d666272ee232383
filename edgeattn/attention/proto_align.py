"""Prototype alignment (few-shot PANet, arXiv 1908.06391).

A class's prototype is the mean of the support features under its mask (the background's, under what no mask
covers); a query position belongs to the prototype of the largest cosine, ``softmax(alpha * cos)``. Alignment:
the prototypes of the query under its prediction must segment the support.
Shapes: support (N, C, H, W), masks (N, K, H, W), query (N, C, H, W) -> logits (N, 1 + K, H, W).

Deviations: each item of a batch is an episode of one shot; masks have the features' size; alpha is 20 as in the
paper. On a device the prototypes are constants, so that inference is a normalization and a 1x1 convolution:
`PrototypeHead`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from edgeattn.errors import ModelError, RecipeError

__all__ = ["PrototypeAlignment", "PrototypeHead"]

_EPS = 1e-5


class PrototypeAlignment(nn.Module):
    """Few-shot segmentation by prototypes, and its alignment loss; no parameters.

    Args:
        alpha: Factor on the cosine.

    Raises:
        RecipeError: If alpha is not positive.
    """

    kind = "proto_align"

    def __init__(self, *, alpha: float = 20.0) -> None:
        super().__init__()
        if not alpha > 0:
            raise RecipeError(f"alpha of proto_align must be positive, got {alpha!r}.")
        self.alpha = alpha

    def prototypes(self, features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Return the masked means, background first, shape (N, 1 + K, C).

        Args:
            features: (N, C, H, W).
            masks: (N, K, H, W), from 0 to 1.

        Raises:
            ModelError: If the shapes do not fit.
        """
        if masks.ndim != 4 or features.ndim != 4 or masks.shape[2:] != features.shape[2:]:
            raise ModelError(
                f"Masks {tuple(masks.shape)} do not cover features {tuple(features.shape)}: "
                "expected (N, K, H, W) and (N, C, H, W)."
            )
        everything = torch.cat([1.0 - masks.amax(1, keepdim=True), masks], dim=1)
        sums = torch.einsum("nchw,nkhw->nkc", features, everything)
        return sums / (everything.sum((2, 3)).unsqueeze(2) + _EPS)

    def segment(self, features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        """Return the scaled cosines of positions and prototypes, (N, 1 + K, H, W)."""
        near = functional.normalize(features, dim=1)
        return self.alpha * torch.einsum("nchw,nkc->nkhw", near, functional.normalize(prototypes, dim=2))

    def forward(self, support: torch.Tensor, masks: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """Return the query's logits, background first."""
        return self.segment(query, self.prototypes(support, masks))

    def alignment_loss(self, support: torch.Tensor, masks: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """Return how badly the query's predicted prototypes segment the support: a cross-entropy."""
        predicted = self(support, masks, query).argmax(1)
        back = functional.one_hot(predicted, masks.shape[1] + 1).movedim(3, 1)[:, 1:].to(query.dtype)
        logits = self.segment(support, self.prototypes(query, back))
        truth = torch.cat([1.0 - masks.amax(1, keepdim=True), masks], dim=1).argmax(1)
        return functional.cross_entropy(logits, truth)


class PrototypeHead(nn.Module):
    """The inference side for known prototypes: normalize every position, then a 1x1 convolution.

    Args:
        prototypes: (1 + K, C).
        alpha: Factor on the cosine.
    """

    def __init__(self, prototypes: torch.Tensor, alpha: float = 20.0) -> None:
        super().__init__()
        count, channels = prototypes.shape
        self.cosine = nn.Conv2d(channels, count, 1, bias=False)
        with torch.no_grad():
            self.cosine.weight.copy_(alpha * functional.normalize(prototypes, dim=1)[:, :, None, None])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the scaled cosines, (N, C, H, W) -> (N, 1 + K, H, W)."""
        # The dot product first: it is linear, and the norm then divides few channels, not many.
        length = ((features * features).sum(1, keepdim=True) + 1e-12).sqrt()
        cosine: torch.Tensor = self.cosine(features) / length
        return cosine
