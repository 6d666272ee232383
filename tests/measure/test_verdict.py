"""Verdicts: the point estimate decides, and every reason says how sure it is."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from edgeattn.errors import RecipeError
from edgeattn.measure import AcceptBounds, LatencyRatio, Parity, compare_outputs, judge, wilson_interval


def measured(n: int, differing: int) -> Parity:
    """Parity of a perfect reference with an engine that gets `differing` images wrong."""
    reference = np.tile([2.0, 0.0], (n, 1))
    test = reference.copy()
    test[:differing] = [0.0, 2.0]
    return compare_outputs(reference, test, np.zeros(n, int))


def test_everything_met() -> None:
    bounds = AcceptBounds(top1_delta_max=0.05, agreement_min=0.9, sqnr_db_min=10.0, speedup_min=1.5)
    verdict = judge(bounds, measured(2000, 20), LatencyRatio(0.5, (0.48, 0.52), (0.5,) * 8))
    assert verdict.passed
    assert [reason.metric for reason in verdict.reasons] == ["top1_delta", "agreement", "sqnr_db", "speedup"]
    assert [reason.certain for reason in verdict.reasons] == [True, True, None, True]
    assert "cannot tell" not in " ".join(reason.text for reason in verdict.reasons)
    value = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert value["verdict"] == "pass"


def test_one_missed_bound_fails_the_verdict_and_is_named_with_figures() -> None:
    verdict = judge(AcceptBounds(top1_delta_max=0.005, sqnr_db_min=1.0), measured(2000, 100))
    assert not verdict.passed
    loss, sqnr = verdict.reasons
    assert (loss.passed, loss.certain, sqnr.passed) == (False, True, True)
    assert "-5.00 points over 2000 images, misses at least -0.50 points" in loss.text


def test_a_gain_never_fails() -> None:
    reference = np.tile([0.0, 2.0], (50, 1))
    better = compare_outputs(reference, -reference, np.zeros(50, int))
    assert better.top1_delta == 1.0
    assert judge(AcceptBounds(top1_delta_max=0.0), better).passed


def test_equal_top1_meets_a_bound_of_zero() -> None:
    assert judge(AcceptBounds(top1_delta_max=0.0), measured(50, 0)).passed


def test_a_straddling_interval_decides_by_the_point_and_says_what_would_tell() -> None:
    (reason,) = judge(AcceptBounds(agreement_min=0.97), measured(200, 4)).reasons
    assert reason.passed
    assert reason.certain is False
    assert "cannot tell with n = 200: needs about" in reason.text
    (missed,) = judge(AcceptBounds(agreement_min=0.99), measured(200, 4)).reasons
    assert not missed.passed
    assert missed.certain is False


@pytest.mark.parametrize(("metric", "bound"), [("agreement_min", 0.97), ("top1_delta_max", 0.03)])
def test_the_number_it_asks_for_is_enough(metric: str, bound: float) -> None:
    (reason,) = judge(AcceptBounds(**{metric: bound}), measured(200, 4)).reasons
    match = re.search(r"needs about (\d+) images", reason.text)
    assert match is not None
    n = int(match.group(1))
    assert n > 200
    # At twice the number it asks for, the same share is certain; at half of it, it is not.
    assert judge(AcceptBounds(**{metric: bound}), measured(2 * n, 2 * n // 50)).reasons[0].certain
    assert not judge(AcceptBounds(**{metric: bound}), measured(n // 2, n // 100)).reasons[0].certain


def test_a_figure_on_its_bound_is_not_sent_to_measure_forever() -> None:
    (reason,) = judge(AcceptBounds(agreement_min=0.98), measured(200, 4)).reasons
    assert reason.passed
    assert "sits on the bound" in reason.text


def test_what_was_not_measured_fails() -> None:
    bounds = AcceptBounds(top1_delta_max=0.1, agreement_min=0.5, sqnr_db_min=1.0, speedup_min=1.0)
    verdict = judge(bounds)
    assert not verdict.passed
    assert [reason.measured for reason in verdict.reasons] == [None] * 4
    unlabelled = compare_outputs(np.eye(3), np.eye(3))
    (reason,) = judge(AcceptBounds(top1_delta_max=0.1), unlabelled).reasons
    assert "no labels" in reason.text
    assert not reason.passed


def test_equal_outputs_meet_any_sqnr_and_stay_valid_json() -> None:
    verdict = judge(AcceptBounds(sqnr_db_min=200.0), measured(10, 0))
    assert verdict.passed
    assert json.loads(json.dumps(verdict.to_json(), allow_nan=False))["reasons"][0]["measured"] is None


def test_speedup_with_and_without_an_interval() -> None:
    unsure = LatencyRatio(0.65, (0.55, 0.75), (0.55, 0.65, 0.75))
    (reason,) = judge(AcceptBounds(speedup_min=1.5), speedup=unsure).reasons
    assert reason.passed
    assert reason.certain is False
    assert "over 3 rounds" in reason.text
    assert re.search(r"needs about \d+ rounds", reason.text)
    (plain,) = judge(AcceptBounds(speedup_min=1.5), speedup=1.4).reasons
    assert (plain.passed, plain.certain) == (False, None)
    assert plain.text == "speedup 1.40x, misses at least 1.50x"


def test_no_bounds_pass() -> None:
    assert judge(AcceptBounds()).passed


@pytest.mark.parametrize(
    "bounds",
    [{"agreement_min": 1.1}, {"top1_delta_max": -0.1}, {"speedup_min": -1}, {"sqnr_db_min": math.nan}],
)
def test_bounds_out_of_range_are_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=next(iter(bounds))):
        AcceptBounds(**bounds)


def test_full_agreement_on_few_images_says_how_many_would_tell() -> None:
    """All of ten agree: Wilson's interval clears 99.5 % from 765 images on, not from eleven."""
    logits = np.eye(10)
    (reason,) = judge(AcceptBounds(agreement_min=0.995), compare_outputs(logits, logits)).reasons
    assert reason.passed
    assert reason.certain is False
    assert "cannot tell with n = 10: needs about 770 images" in reason.text
    assert wilson_interval(770, 770)[0] > 0.995 > wilson_interval(760, 760)[0]


def test_no_change_on_few_images_says_how_many_would_tell() -> None:
    logits = np.eye(10)
    parity = compare_outputs(logits, logits, np.arange(10))
    (reason,) = judge(AcceptBounds(top1_delta_max=0.01), parity).reasons
    assert reason.certain is False
    assert "needs about 200 images" in reason.text
