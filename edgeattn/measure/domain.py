"""Whether two sets of images are alike to a network, told from how large its activations become.

A calibration set from another domain (drawings for photographs, bright scenes for dark ones) gives ranges that do not
fit, and accuracy is lost without a word. What matters for ranges is the largest magnitude of every tensor on every
image; two sets of such vectors are compared by their energy distance (Szekely and Rizzo, "Energy statistics: A class
of statistics based on distances", J. Statist. Plann. Inference 143, 2013), whose chance level comes from permutations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["DomainShift", "compare_domains"]

PERMUTATIONS = 499
LARGEST_CHANCE = 0.01
"""Sets are unlike only if so few permutations are as far apart,"""
LEAST_DISTANCE = 0.05
"""and if they are this far apart, too: with many images, differences show that harm nobody."""
_NAMED = 3
_ZERO = 1e-6


@dataclasses.dataclass(frozen=True)
class DomainShift:
    """How unlike two sets of images are.

    Attributes:
        distance: Energy distance over twice the mean distance between the sets: 0 for one distribution, 1 where the
            distances within the sets vanish beside those between them.
        p_value: Share of permutations at least as far apart, the one found included.
        counts: Images of either set.
        tensors: Where the sets differ most, the worst first, with the difference of the means in standard deviations.
    """

    distance: float
    p_value: float
    counts: tuple[int, int]
    tensors: tuple[tuple[str, float], ...]

    @property
    def is_unlike(self) -> bool:
        """Whether the difference is neither chance nor too small to matter."""
        return self.p_value <= LARGEST_CHANCE and self.distance >= LEAST_DISTANCE


def compare_domains(
    names: Sequence[str], first: NDArray[np.floating], second: NDArray[np.floating], seed: int = 0
) -> DomainShift:
    """Compare the extents of activations on two sets of images.

    Args:
        names: Of T tensors.
        first: (N, T), the largest magnitude of each tensor on each image; at least 2 images.
        second: (M, T), the same of the other set.
        seed: Of the permutations.
    """
    values = np.log2(np.maximum(np.concatenate([first, second]).astype(np.float64), _ZERO))
    values = (values - values.mean(0)) / np.maximum(values.std(0), _ZERO)
    squares = np.square(values).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * values @ values.T, 0.0))
    count = len(first)
    found = _energy(distances, np.arange(len(values)), count)
    random = np.random.default_rng(seed)
    as_far = sum(
        _energy(distances, random.permutation(len(values)), count) >= found for _ in range(PERMUTATIONS)
    )
    between = distances[:count, count:].mean()
    gaps = values[:count].mean(0) - values[count:].mean(0)
    worst = np.argsort(-np.abs(gaps))[:_NAMED]
    return DomainShift(
        distance=float(max(found, 0.0) / (2 * between)) if between > 0 else 0.0,
        p_value=(1 + as_far) / (1 + PERMUTATIONS),
        counts=(count, len(second)),
        tensors=tuple((names[index], float(gaps[index])) for index in worst),
    )


def _energy(distances: NDArray[np.float64], order: NDArray[np.int64], count: int) -> float:
    own, other = order[:count], order[count:]
    # Pairs of different images: the mean over all pairs would shrink with the zero of each with itself.
    within = sum(
        distances[np.ix_(part, part)].sum() / max(len(part) * (len(part) - 1), 1) for part in (own, other)
    )
    return float(2 * distances[np.ix_(own, other)].mean() - within)
