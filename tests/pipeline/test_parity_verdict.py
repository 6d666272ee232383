"""The verdict on engines beside each other: what makes it fail, and what it cannot tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeattn.answers import Answers
from edgeattn.pipeline_parity_verdict import judge_parity, top1_spread


def _result(n: int, top1: dict[str, float], **others: dict[str, Any]) -> dict[str, Any]:
    targets: dict[str, Any] = {
        name: {"status": "ok", "profile": "u8", "top1": score} for name, score in top1.items()
    } | others
    names = list(top1)
    between = {
        f"{first}/{second}": {"same_profile": True}
        for index, first in enumerate(names)
        for second in names[index + 1 :]
    }
    return {"n": n, "targets": targets, "between": between, "top1_spread": top1_spread(targets)}


def _logits(n: int, names: str, *, wrong: int = 0) -> dict[str, Any]:
    """Each target's answers; the last one's first `wrong` are others."""
    rows = np.eye(4, dtype=np.float32)[np.arange(n) % 4]
    logits = {name: rows.copy() for name in names}
    logits[names[-1]][:wrong] = np.roll(rows[:wrong], 1, axis=1)
    return logits


def test_targets_that_agree_pass() -> None:
    verdict = judge_parity(_result(1000, {"a": 0.9, "b": 0.901}), _logits(1000, "ab"))
    assert verdict["passed"]
    assert [reason["metric"] for reason in verdict["reasons"]] == ["agreement", "top1_spread"]


@pytest.mark.parametrize(("wrong", "passed"), [(5, True), (6, False)])
def test_one_pair_below_the_bound_is_enough_to_fail(wrong: int, passed: bool) -> None:
    result = _result(1000, {"a": 0.9, "b": 0.9, "c": 0.9})
    verdict = judge_parity(result, _logits(1000, "abc", wrong=wrong))
    assert verdict["passed"] is passed
    missed = {reason["about"] for reason in verdict["reasons"] if not reason["passed"]}
    assert missed == (set() if passed else {"a/c", "b/c"})


def test_top1_that_lies_apart_fails_where_there_are_images_enough_to_tell() -> None:
    apart = {"a": 0.9, "b": 0.9025}
    assert not judge_parity(_result(500, apart), _logits(500, "ab"))["passed"]
    few = judge_parity(_result(499, apart), _logits(499, "ab"))
    assert few["passed"]
    assert "top1_spread" not in [reason["metric"] for reason in few["reasons"]]


def test_profiles_are_not_compared_with_each_other() -> None:
    result = _result(1000, {"a": 0.9}, b={"status": "ok", "profile": "s8", "top1": 0.8})
    assert result["top1_spread"] == {}


def test_a_target_that_failed_fails_the_verdict_and_says_why() -> None:
    result = _result(10, {"a": 0.9, "b": 0.9}, c={"status": "failed", "profile": "u8", "error": "no answer"})
    verdict = judge_parity(result, _logits(10, "ab"))
    assert not verdict["passed"]
    assert [reason["text"] for reason in verdict["reasons"] if not reason["passed"]] == ["failed: no answer"]


def test_a_target_that_is_not_available_here_fails_nothing() -> None:
    result = _result(
        1000, {"a": 0.9, "b": 0.9}, c={"status": "unavailable", "profile": "u8", "reason": "absent"}
    )
    assert judge_parity(result, _logits(1000, "ab"))["passed"]


def test_nothing_compared_is_not_passed() -> None:
    verdict = judge_parity(_result(10, {"a": 0.9}), _logits(10, "a"))
    assert not verdict["passed"]
    assert "nothing was compared" in verdict["reasons"][0]["text"]


@pytest.mark.parametrize("cause", ["rounding", "wrong_scale", None])
def test_engines_that_rounding_parts_are_told_of_exact_grids(cause: str | None) -> None:
    finding = {"is_error": cause == "wrong_scale", "cause": cause, "evidence": "evidence"}
    layers = [{"name": "conv", "module": "conv", "over_one_share": 0.0, "finding": finding}]
    result = _result(1000, {"a": 0.9, "b": 0.9})
    for entry in result["targets"].values():
        entry["layers"] = None if cause is None else {"layers": layers}
    for wrong in (0, 6):
        reasons = judge_parity(result, _logits(1000, "ab", wrong=wrong))["reasons"]
        told = ["quant.ptq.exact" in reason["text"] for reason in reasons if reason["metric"] == "agreement"]
        assert told == [wrong == 6 and cause == "rounding"]


@pytest.mark.parametrize(
    ("between", "costs", "passed"),
    [
        (31.0, (50.0, 60.0), True),
        (29.0, (50.0, 60.0), False),
        (14.5, (20.0, 40.0), True),
        (13.5, (20.0, 40.0), False),
        (None, (20.0, 40.0), True),
    ],
    ids=["near", "far", "as far as quantization goes", "farther than that", "identical"],
)
def test_outputs_that_are_no_classes_are_judged_by_how_near_they_are(
    between: float | None, costs: tuple[float, float], passed: bool
) -> None:
    result = _result(10, {})
    for name, cost in zip("ab", costs, strict=True):
        result["targets"][name] = {"status": "ok", "profile": "u8", "sqnr_db": cost, "identical": False}
    result["between"] = {"a/b": {"same_profile": True, "sqnr_db": between, "identical": between is None}}
    verdict = judge_parity(result, _logits(10, "ab"), Answers(("map",), (4,), are_classes=False))
    assert verdict["passed"] is passed
    assert [reason["metric"] for reason in verdict["reasons"]] == ["sqnr_db"]


def test_outputs_of_an_engine_that_gives_nothing_do_not_pass_for_identical() -> None:
    """No ratio is finite where one side is zero."""
    result = _result(10, {})
    for name in "ab":
        result["targets"][name] = {"status": "ok", "profile": "u8", "sqnr_db": 40.0, "identical": False}
    result["between"] = {"a/b": {"same_profile": True, "sqnr_db": None, "identical": False}}
    assert not judge_parity(result, _logits(10, "ab"), Answers(("map",), (4,), are_classes=False))["passed"]
