"""Cases of the mechanisms over branches."""

from __future__ import annotations

from attention_case import Case

__all__ = ["CASES"]

CASES: dict[str, Case] = {}
