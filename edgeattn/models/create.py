"""Make a network by name."""

from __future__ import annotations

import importlib

from torch import nn

from edgeattn.errors import RecipeError, close_matches_hint
from edgeattn.models import architectures

__all__ = ["create_model"]


def create_model(
    arch: str,
    *,
    num_classes: int,
    width: float = 1.0,
    activation: str | None = None,
    dropout: float = 0.2,
) -> nn.Module:
    """Make an untrained network, input (N, 3, H, W), output (N, num_classes) logits.

    Args:
        arch: A name in `architectures`.
        num_classes: Outputs of the classifier.
        width: Multiplier on the number of channels, rounded to multiples of 8.
        activation: One of the architecture's activations; None means its own.
        dropout: Probability before the classifier.

    Raises:
        RecipeError: If the name or a value is not valid.
    """
    info = architectures.get(arch)
    chosen = info.activations[0] if activation is None else activation
    if chosen not in info.activations:
        hint = close_matches_hint(chosen, info.activations)
        raise RecipeError(f"{arch} cannot be built with the activation {chosen!r}. {hint}")
    if num_classes < 1:
        raise RecipeError(f"num_classes must be at least 1, got {num_classes}.")
    if not 0 < width <= 8:
        raise RecipeError(f"width must lie in (0, 8], got {width}.")
    if not 0 <= dropout < 1:
        raise RecipeError(f"dropout must lie in [0, 1), got {dropout}.")
    module_name, class_name = info.module.split(":")
    cls = getattr(importlib.import_module(module_name), class_name)
    model: nn.Module = cls(num_classes=num_classes, width=width, activation=chosen, dropout=dropout)
    return model
