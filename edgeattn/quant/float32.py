"""What float32 holds exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLOAT32_BITS", "mantissa_bits"]

FLOAT32_BITS = 24
"""Significant bits: integers up to ``2**24`` are exact."""


def mantissa_bits(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return how many significant bits numbers take, from their first one to their last.

    One for powers of two; all of float32's for numbers that it does not hold.
    """
    steps = np.abs(np.ldexp(np.frexp(np.asarray(values, np.float64))[0], FLOAT32_BITS))
    whole = np.floor(steps).astype(np.int64)
    last = np.where(steps == whole, np.maximum(whole & -whole, 1), 1)
    return np.asarray(FLOAT32_BITS - np.log2(last).astype(np.int64))
