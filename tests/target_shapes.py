"""The input of the small networks that tests of targets run."""

from __future__ import annotations

SHAPE = (1, 3, 8, 8)
