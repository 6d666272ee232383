"""All lint rules, in the order in which they are reported and fixed."""

from __future__ import annotations

from edgeattn.lint import operators, placement, quantization
from edgeattn.lint.base import Rule

__all__ = ["RULES"]

# Casts come last: what is behind one is no longer next to what other fixes look at.
RULES: tuple[Rule, ...] = (
    *quantization.RULES,
    *placement.RULES,
    *operators.RULES,
    placement.FLOAT32_REMAINDER,
    placement.FLOAT32_PRODUCTS,
)
