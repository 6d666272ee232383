"""Differences of one layer: tallied by hand, and told apart by their cause."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.measure.layers import CAUSES, LayerTally, diagnose

RANDOM = np.random.default_rng(0)
EXPECTED = RANDOM.integers(10, 245, 5000)
LIMITS = (0, 255)


def test_a_tally_counts_steps() -> None:
    tally = LayerTally("t", "a.b", 10)
    tally.add(np.array([10, 20, 30, 40]), np.array([10.0, 21.0, 28.0, 49.0]))
    found = tally.result()
    assert found.histogram == (0.25, 0.25, 0.25, 0, 0.25)
    assert (found.n, found.max_lsb, found.bias_lsb) == (4, 9, 2.0)
    assert found.over_one_share == 0.5
    assert found.sqnr_db == pytest.approx(10 * math.log10((100 + 400 + 900) / (1 + 4 + 81)))
    assert not tally.is_plain()
    with pytest.raises(DataError, match="shape"):
        tally.add(np.zeros(3), np.zeros(4))


def test_few_single_steps_are_plain_rounding() -> None:
    tally = LayerTally("t", None, 0)
    got = EXPECTED.astype(float)
    got[:10] += 1
    tally.add(EXPECTED, got)
    assert tally.is_plain()
    assert tally.result().finding.cause == "rounding"
    same = LayerTally("t", None, 0)
    same.add(EXPECTED, EXPECTED.astype(float))
    assert same.result().finding.cause == "equal"
    assert same.result().to_json()["sqnr_db"] is None


def off_by_rounding(share: float) -> np.ndarray:  # type: ignore[type-arg]
    return EXPECTED + RANDOM.choice([-1.0, 0.0, 1.0], EXPECTED.shape, p=[share / 2, 1 - share, share / 2])


CASES = {
    "rounding": off_by_rounding(0.2),
    "wrong-zero-point": EXPECTED + 1.0,
    "wrong-scale": np.clip(np.rint((EXPECTED - 20) * 0.5 + 20), *LIMITS),
    "saturation": np.minimum(EXPECTED, 127).astype(float),
    "lost-qdq": EXPECTED + RANDOM.uniform(-0.49, 0.49, EXPECTED.shape),
    "unexplained": RANDOM.integers(0, 256, EXPECTED.shape).astype(float),
}


@pytest.mark.parametrize("cause", CASES)
def test_causes_that_the_integers_show(cause: str) -> None:
    found = diagnose(EXPECTED, CASES[cause], 20, LIMITS)
    assert found.cause == cause, found.evidence
    assert found.is_error == (cause != "rounding")
    assert cause in CAUSES


def test_a_coarser_grid_is_another_scale() -> None:
    found = diagnose(EXPECTED, 20 + 2 * np.rint((EXPECTED - 20) / 2), 20, LIMITS)
    assert found.cause == "wrong-scale"
    assert "steps of 2" in found.evidence


def test_a_bias_of_one_step_is_no_rounding() -> None:
    got = EXPECTED + (RANDOM.random(EXPECTED.shape) < 0.4)
    assert diagnose(EXPECTED, got.astype(float), 0, LIMITS).cause == "unexplained"


def test_a_bias_that_lies_on_ties_is_rounding() -> None:
    ties = RANDOM.random(EXPECTED.shape) < 0.4
    found = diagnose(EXPECTED, (EXPECTED + ties).astype(float), 0, LIMITS, ties=ties)
    assert found.cause == "rounding"
    assert "right between two steps" in found.evidence


def test_an_alternative_is_named_only_if_it_explains() -> None:
    other = np.where(RANDOM.random(EXPECTED.shape) < 0.1, 0, EXPECTED)
    key = ("pair-saturation", "as if sums saturated")
    assert diagnose(EXPECTED, other.astype(float), 0, LIMITS, {key: other}).cause == "pair-saturation"
    elsewhere = RANDOM.permutation(other)
    found = diagnose(EXPECTED, other.astype(float), 0, LIMITS, {key: elsewhere})
    assert found.cause != "pair-saturation"
