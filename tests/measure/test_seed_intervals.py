"""Intervals of a mean over seeds: Student's, against published values, and honest by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import DataError
from edgeattn.measure.statistics import mean_interval, t_value, z_value

SHARES = st.floats(0, 1, allow_nan=False)


@pytest.mark.parametrize(
    ("confidence", "degrees", "expected"),
    [  # printed tables of Student's distribution
        (0.95, 1, 12.7062),
        (0.95, 2, 4.3027),
        (0.95, 3, 3.1824),
        (0.95, 4, 2.7764),
        (0.95, 9, 2.2622),
        (0.95, 30, 2.0423),
        (0.95, 120, 1.9799),
        (0.99, 4, 4.6041),
        (0.80, 1, 3.0777),
    ],
)
def test_t_values_are_those_of_the_tables(confidence: float, degrees: int, expected: float) -> None:
    assert t_value(confidence, degrees) == pytest.approx(expected, abs=6e-5)


def test_many_degrees_give_the_normal_distribution() -> None:
    assert t_value(0.95, 100_000) == pytest.approx(z_value(0.95), rel=1e-4)


def test_the_interval_is_mean_and_t_times_standard_error() -> None:
    low, high = mean_interval([0.90, 0.92, 0.94, 0.91, 0.93]) or (math.nan, math.nan)
    half = 2.776445 * math.sqrt(0.00025) / math.sqrt(5)
    assert (low, high) == pytest.approx((0.92 - half, 0.92 + half), abs=1e-7)


def test_a_single_value_has_no_interval() -> None:
    assert mean_interval([0.5]) is None


@pytest.mark.parametrize("values", [[]])
def test_no_values_are_refused(values: list[float]) -> None:
    with pytest.raises(DataError, match="no values"):
        mean_interval(values)


def test_no_degrees_are_refused() -> None:
    with pytest.raises(DataError, match="degrees of freedom"):
        t_value(0.95, 0)


@given(st.lists(SHARES, min_size=2, max_size=8), st.floats(-1, 1, allow_nan=False))
def test_what_a_seed_does_to_both_cancels(seeds: list[float], effect: float) -> None:
    """Equal differences have an interval without width, however far the seeds lie apart."""
    low, high = mean_interval([(seed + effect) - seed for seed in seeds]) or (math.nan, math.nan)
    assert (low, high) == pytest.approx((effect, effect), abs=1e-12)


@given(st.lists(SHARES, min_size=2, max_size=8))
def test_swapping_the_two_methods_mirrors_the_interval(values: list[float]) -> None:
    low, high = mean_interval(values) or (math.nan, math.nan)
    assert mean_interval([-value for value in values]) == pytest.approx((-high, -low), abs=1e-12)


def test_95_of_100_intervals_hold_the_true_mean() -> None:
    """Also with five seeds, where the normal distribution's intervals would be too narrow."""
    draws = np.random.default_rng(7).normal(0.3, 0.02, size=(2000, 5))
    intervals = [mean_interval(list(row)) or (0.0, 0.0) for row in draws]
    held = sum(low <= 0.3 <= high for low, high in intervals) / len(intervals)
    assert 0.94 <= held <= 0.96
