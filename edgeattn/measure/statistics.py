"""The statistics behind every figure in a report, small enough to check by hand.

Shares lie in [0, 1], differences of logits are in decibels, nats or LSB, and intervals are two-sided.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeattn.errors import DataError

__all__ = [
    "Interval",
    "LsbDifference",
    "agreement",
    "kl_divergence",
    "lsb_difference",
    "mcnemar_p",
    "mean_interval",
    "median_ratio_interval",
    "paired_difference_interval",
    "sqnr_db",
    "t_value",
    "top1",
    "wilson_interval",
    "z_value",
]

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class LsbDifference:
    """How far two tensors are apart, in steps of a quantizer.

    Attributes:
        max_lsb: Largest distance.
        mean_lsb: Mean distance.
        over_one_share: Share of elements more than one step apart, in [0, 1].
    """

    max_lsb: float
    mean_lsb: float
    over_one_share: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return dataclasses.asdict(self)


def top1(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of rows whose largest logit is the label's.

    Args:
        logits: (N, classes).
        labels: (N,) class indices.

    Raises:
        DataError: If the shapes do not fit or there are no rows.
    """
    scores, classes = _rows(logits), np.asarray(labels)
    if classes.shape != scores.shape[:1]:
        raise DataError(f"Labels have shape {classes.shape}; expected one per image, {scores.shape[:1]}.")
    return float(np.mean(scores.argmax(axis=1) == classes))


def agreement(reference: ArrayLike, test: ArrayLike) -> float:
    """Return the share of rows for which both choose the same class.

    Args:
        reference: (N, classes) logits.
        test: (N, classes) logits.

    Raises:
        DataError: If the shapes differ or there are no rows.
    """
    first, second = _pair(_rows(reference), _rows(test))
    return float(np.mean(first.argmax(axis=1) == second.argmax(axis=1)))


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a share: it behaves near 0 and 1, where the usual one does not.

    Raises:
        DataError: If not 0 <= successes <= n, or n is 0.
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"Got {successes} successes of {n}; expected 0 <= successes <= n and n >= 1.")
    z = z_value(confidence)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the bound is exactly 0 or 1; rounding would leave it a hair inside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def mcnemar_p(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Return the two-sided p-value of McNemar's exact test: are two models right equally often?

    Only images that one gets right and the other wrong count; under the null hypothesis either way is as
    likely, so their split is binomial.

    Args:
        correct_a: (N,) whether the first model is right.
        correct_b: (N,) whether the second model is right.
    """
    only_a, only_b, _ = _discordant(correct_a, correct_b)
    n, fewer = only_a + only_b, min(only_a, only_b)
    term = total = 1
    for k in range(fewer):
        # Binomial coefficients one from the other, in whole numbers: exact for any n.
        term = term * (n - k) // (k + 1)
        total += term
    return min(1.0, float(2 * total / (1 << n)))


def paired_difference_interval(
    correct_a: ArrayLike, correct_b: ArrayLike, confidence: float = 0.95
) -> Interval:
    """Return the interval of share(b) - share(a) on the same images.

    Agresti and Min's adjusted Wald interval for matched pairs: half an image is added to each of the four
    cells, which keeps the interval honest when few images differ.

    Args:
        correct_a: (N,) whether the first model is right.
        correct_b: (N,) whether the second model is right.
        confidence: Such as 0.95.
    """
    only_a, only_b, n = _discordant(correct_a, correct_b)
    total, a, b = n + 2, only_a + 0.5, only_b + 0.5
    difference = (b - a) / total
    variance = ((a + b) - (b - a) ** 2 / total) / total**2
    half = z_value(confidence) * math.sqrt(variance)
    return max(-1.0, difference - half), min(1.0, difference + half)


def sqnr_db(reference: ArrayLike, test: ArrayLike) -> float:
    """Return the signal-to-quantization-noise ratio, 10 log10(sum ref^2 / sum (ref - test)^2), in dB.

    Infinite if both are equal, minus infinity if the reference is all zero and the test is not.

    Raises:
        DataError: If the shapes differ.
    """
    first, second = _pair(_doubles(reference), _doubles(test))
    signal, noise = float(np.sum(first**2)), float(np.sum((first - second) ** 2))
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def kl_divergence(reference: ArrayLike, test: ArrayLike) -> float:
    """Return the mean over rows of KL(softmax(reference) || softmax(test)), in nats.

    Args:
        reference: (N, classes) logits.
        test: (N, classes) logits.

    Raises:
        DataError: If the shapes differ or there are no rows.
    """
    first, second = _pair(_rows(reference), _rows(test))
    log_p, log_q = _log_softmax(first), _log_softmax(second)
    return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1)))


def lsb_difference(reference: ArrayLike, test: ArrayLike, scale: float) -> LsbDifference:
    """Return how many quantization steps of size `scale` lie between two tensors.

    Raises:
        DataError: If the shapes differ, the tensors are empty, or the scale is not positive.
    """
    if not scale > 0 or not math.isfinite(scale):
        raise DataError(f"The scale is {scale!r}; expected a positive number.")
    first, second = _pair(_doubles(reference), _doubles(test))
    if first.size == 0:
        raise DataError("The tensors are empty; there is nothing to compare.")
    steps = np.abs(first - second) / scale
    # float32 tensors do not sit on the grid exactly: a hundredth of a step is rounding, not a difference.
    return LsbDifference(float(steps.max()), float(steps.mean()), float(np.mean(steps > 1.01)))


def median_ratio_interval(
    ratios: Sequence[float], confidence: float = 0.95, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the percentile-bootstrap interval of the median of `ratios`.

    The seed is fixed so that a report can be made twice.

    Raises:
        DataError: If there are no ratios.
    """
    values = _doubles(ratios)
    if values.size == 0:
        raise DataError("There are no ratios; measure at least one round.")
    chosen = np.random.default_rng(seed).integers(values.size, size=(resamples, values.size))
    medians = np.median(values[chosen], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return float(low), float(high)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Return Student's interval of the mean of a few repetitions, such as one figure for each seed.

    For a difference between two methods give the differences, one for each seed that both have: what the seed
    does to both then cancels.

    Returns:
        Low and high end; None for a single value, which says nothing about the next.

    Raises:
        DataError: If there are no values.
    """
    numbers = _doubles(values)
    if numbers.size == 0:
        raise DataError("There are no values; measure at least one seed.")
    if numbers.size == 1:
        return None
    mean = float(numbers.mean())
    half = t_value(confidence, numbers.size - 1) * float(numbers.std(ddof=1)) / math.sqrt(numbers.size)
    return mean - half, mean + half


def t_value(confidence: float, degrees: int) -> float:
    """Return how many standard errors a two-sided interval of Student's distribution reaches to each side.

    Args:
        confidence: Such as 0.95.
        degrees: Degrees of freedom, at least 1.

    Raises:
        DataError: If an argument is out of its range.
    """
    z = z_value(confidence)
    if degrees < 1:
        raise DataError(f"Got {degrees} degrees of freedom; expected at least 1: two repetitions.")
    # The share within +-t rises with the angle atan(t / sqrt(degrees)), so that halving finds it.
    low, high = math.atan(z / math.sqrt(degrees)), math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, degrees) < confidence else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _t_share(angle: float, degrees: int) -> float:
    """Return P(|t| < sqrt(degrees) tan(angle)), by the finite series 26.7.3 and 26.7.4 of Abramowitz and Stegun."""
    cosine, sine = math.cos(angle), math.sin(angle)
    is_odd = degrees % 2
    term = total = (cosine if degrees > 1 else 0.0) if is_odd else 1.0
    for k in range(2 if is_odd else 1, degrees - 2, 2):
        term *= k / (k + 1) * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total


def z_value(confidence: float) -> float:
    """Return how many standard deviations a two-sided interval reaches to each side.

    Raises:
        DataError: If the confidence does not lie between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise DataError(f"The confidence is {confidence!r}; expected a number between 0 and 1, such as 0.95.")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _doubles(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def _rows(logits: ArrayLike) -> NDArray[np.float64]:
    rows = _doubles(logits)
    if rows.ndim != 2 or 0 in rows.shape:
        raise DataError(f"Logits have shape {rows.shape}; expected (images, classes), neither of them 0.")
    return rows


def _pair(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if first.shape != second.shape:
        raise DataError(
            f"Shapes differ: reference {first.shape}, test {second.shape}. Compare like with like."
        )
    return first, second


def _log_softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True)))


def _discordant(correct_a: ArrayLike, correct_b: ArrayLike) -> tuple[int, int, int]:
    """Return how many only the first got right, how many only the second, and how many there are."""
    first, second = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise DataError(
            f"Got outcomes of shapes {first.shape} and {second.shape}; expected (N,) twice, N >= 1."
        )
    return int(np.sum(first & ~second)), int(np.sum(second & ~first)), int(first.size)
