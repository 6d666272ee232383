"""How a runtime fails: something is missing here, or it refuses the model."""

from __future__ import annotations

__all__ = ["OLDEST_TENSORRT", "Lacking", "RuntimeFailed"]

OLDEST_TENSORRT = (10, 0)
"""The first version with strongly typed networks that this kit builds."""


class Lacking(Exception):
    """Something that this runtime needs is not here."""


class RuntimeFailed(Exception):
    """The runtime refused the model or failed in it."""
