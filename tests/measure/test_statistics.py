"""The statistics, against values worked out by hand and against brute force."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.errors import DataError
from edgeattn.measure import (
    agreement,
    kl_divergence,
    lsb_difference,
    mcnemar_p,
    median_ratio_interval,
    paired_difference_interval,
    sqnr_db,
    top1,
    wilson_interval,
)
from edgeattn.measure.statistics import z_value

LOGITS = [[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 0.0, 1.0], [5.0, 1.0, 1.0]]


def test_top1_and_agreement() -> None:
    assert top1(LOGITS, [0, 1, 0, 0]) == 0.75
    other = [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 9.0], [1.0, 0.0, 0.0]]
    assert agreement(LOGITS, other) == 0.75
    assert agreement(LOGITS, LOGITS) == 1.0


@pytest.mark.parametrize(("successes", "n"), [(8, 10), (0, 10), (10, 10), (1, 1), (250, 1300)])
def test_wilson_interval_solves_the_score_equation(successes: int, n: int) -> None:
    """Its ends are the shares p at which |observed - p| is exactly z standard errors of p."""
    low, high = wilson_interval(successes, n)
    share, z = successes / n, z_value(0.95)
    for end in (low, high):
        if end not in (0.0, 1.0):
            assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n))
    assert 0.0 <= low <= share <= high <= 1.0


def test_wilson_interval_by_hand() -> None:
    # Published example: 8 of 10 gives 0.490 to 0.943.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0
    wide, narrow = wilson_interval(8, 10, 0.99), wilson_interval(8, 10, 0.8)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(DataError):
        wilson_interval(successes, n)


def outcomes(only_a: int, only_b: int, both: int = 3) -> tuple[list[bool], list[bool]]:
    a = [True] * only_a + [False] * only_b + [True] * both
    b = [False] * only_a + [True] * only_b + [True] * both
    return a, b


@pytest.mark.parametrize(("only_a", "only_b"), list(itertools.product(range(6), range(6))))
def test_mcnemar_counts_every_way_to_split(only_a: int, only_b: int) -> None:
    """Under the null hypothesis each discordant image falls to either side like a coin."""
    n = only_a + only_b
    distance = abs(only_a - only_b)
    splits = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
    as_far = sum(abs(2 * heads - n) >= distance for heads in splits)
    assert mcnemar_p(*outcomes(only_a, only_b)) == pytest.approx(as_far / len(splits))


def test_mcnemar_stays_exact_for_many_images() -> None:
    exact = Fraction(2 * sum(math.comb(5000, k) for k in range(2401)), 2**5000)
    assert mcnemar_p(*outcomes(2400, 2600)) == float(exact)
    # The normal approximation with continuity correction is close at this size.
    approximate = math.erfc((200 - 1) / math.sqrt(2 * 5000))
    assert float(exact) == pytest.approx(approximate, rel=0.01)
    assert mcnemar_p(*outcomes(5000, 0)) < 1e-300


def test_paired_difference_interval_covers_what_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        cells = rng.choice(4, size=120, p=[0.1, 0.06, 0.7, 0.14])
        a, b = (cells == 0) | (cells == 2), (cells == 1) | (cells == 2)
        low, high = paired_difference_interval(a, b)
        hits += low <= -0.04 <= high
    # 400 draws of a 95 % interval: 3 standard errors are 3.3 points.
    assert 0.917 <= hits / 400 <= 0.99


def test_paired_difference_interval_of_equal_models_is_not_a_point() -> None:
    low, high = paired_difference_interval([True] * 50, [True] * 50)
    assert low < 0 < high
    assert low == pytest.approx(-high)


def test_sqnr_by_hand() -> None:
    assert sqnr_db([3.0, 4.0], [3.0, 4.5]) == pytest.approx(20.0)
    assert sqnr_db([1.0], [1.0]) == math.inf
    assert sqnr_db([0.0], [1.0]) == -math.inf


def test_sqnr_of_a_uniform_quantizer_is_six_decibels_a_bit() -> None:
    signal = np.random.default_rng(0).uniform(-1, 1, 20_000)
    step = 2 / 256
    assert sqnr_db(signal, np.round(signal / step) * step) == pytest.approx(6.02 * 8, abs=0.3)


def test_sqnr_does_not_lose_precision_on_float32() -> None:
    reference = np.full(1_000_000, 1000.0, np.float32)
    assert sqnr_db(reference, reference + np.float32(1)) == pytest.approx(60.0, abs=1e-6)


def test_kl_divergence_by_hand() -> None:
    first, second = [[math.log(3), 0.0]], [[0.0, 0.0]]
    # (3/4, 1/4) against (1/2, 1/2).
    assert kl_divergence(first, second) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert kl_divergence([[1e4, 0.0]], [[1e4, 0.0]]) == 0.0


@given(
    st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=5), st.floats(-9, 9)
)
@settings(max_examples=30, deadline=None)
def test_kl_divergence_is_never_negative_and_ignores_an_offset(
    rows: list[list[float]], offset: float
) -> None:
    logits = np.array(rows)
    assert kl_divergence(logits, logits[:, ::-1]) >= -1e-12
    assert kl_divergence(logits, logits + offset) == pytest.approx(0.0, abs=1e-9)


def test_lsb_difference() -> None:
    difference = lsb_difference([0.0, 0.5, 1.0, 1.0], [0.0, 0.6, 1.2, 1.0], 0.1)
    assert difference.max_lsb == pytest.approx(2.0)
    assert difference.mean_lsb == pytest.approx(0.75)
    assert difference.over_one_share == 0.25
    with pytest.raises(DataError, match="scale"):
        lsb_difference([0.0], [0.0], 0.0)
    with pytest.raises(DataError, match="empty"):
        lsb_difference([], [], 0.1)


def test_median_ratio_interval() -> None:
    rng = np.random.default_rng(0)
    ratios = list(rng.normal(0.5, 0.05, 41))
    low, high = median_ratio_interval(ratios)
    assert low < float(np.median(ratios)) < high
    # For a median of normals the standard error is 1.25 sigma / sqrt(n).
    assert high - low == pytest.approx(2 * 1.96 * 1.25 * 0.05 / math.sqrt(41), rel=0.5)
    assert median_ratio_interval(ratios) == (low, high)
    assert median_ratio_interval([0.7]) == (0.7, 0.7)
    with pytest.raises(DataError):
        median_ratio_interval([])


def test_shapes_are_checked() -> None:
    with pytest.raises(DataError, match="Labels"):
        top1(LOGITS, [0])
    with pytest.raises(DataError, match="Shapes differ"):
        agreement(LOGITS, LOGITS[:2])
    with pytest.raises(DataError, match="images, classes"):
        top1(np.zeros((0, 3)), [])
    with pytest.raises(DataError, match="outcomes"):
        mcnemar_p([], [])
    with pytest.raises(DataError, match="confidence"):
        z_value(95)
