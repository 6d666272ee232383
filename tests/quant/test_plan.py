"""A plan survives its file, refuses what is no plan, and spells each profile as promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeattn.errors import ArtifactError
from edgeattn.quant.plan import PROFILES, ActivationRange, LadderStep, QuantPlan, quantize_weight

bounds = st.floats(1e-6, 1e6)
ranges = st.builds(
    lambda low, high, limit, addend, folds: ActivationRange(
        low=-low, high=high, limit=limit, addend=addend, folds_zero_point=folds
    ),
    st.one_of(st.just(0.0), bounds),
    bounds,
    bounds,
    st.booleans(),
    st.booleans(),
)
names = st.text(min_size=1, max_size=8)
STEP = LadderStep(
    step="ranges", agreement_u8=1, sqnr_db_u8=20, agreement_s8=1, sqnr_db_s8=19, seconds=0.5, kept=True
)
plans = st.builds(
    QuantPlan,
    method=st.sampled_from(["ptq", "qat"]),
    activations=st.dictionaries(names, ranges, max_size=3),
    weights=st.dictionaries(names, st.lists(bounds, max_size=4), max_size=3),
    channel_scales=st.dictionaries(names, st.lists(bounds, max_size=4), max_size=2),
    bias_shift=st.dictionaries(
        st.sampled_from(PROFILES), st.dictionaries(names, st.lists(st.floats(-9, 9), max_size=3), max_size=2)
    ),
    ladder=st.lists(st.just(STEP), max_size=2),
    provenance=st.dictionaries(names, names, max_size=2),
)


@given(plan=plans)
def test_json_round_trip(plan: QuantPlan) -> None:
    text = json.dumps(plan.model_dump(mode="json"))
    assert QuantPlan.model_validate(json.loads(text)) == plan


def test_file_round_trip(tmp_path: Path) -> None:
    plan = QuantPlan(method="ptq", activations={}, weights={"w": [0.5]}, ladder=[STEP])
    assert QuantPlan.load(plan.save(tmp_path / "plan.json")) == plan


GOOD: dict[str, Any] = {
    "version": 1,
    "method": "ptq",
    "activations": {"x": {"low": 0.0, "high": 1.0, "limit": 1.0}},
    "weights": {"w": [0.1]},
}


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"method": "magic"},
        {"activations": {"x": {"low": 0.5, "high": 1.0, "limit": 1.0}}},
        {"activations": {"x": {"low": 0.0, "high": 0.0, "limit": 1.0}}},
        {"activations": {"x": {"low": 0.0, "high": 1.0, "limit": 0.0}}},
        {"activations": {"x": {"low": float("-inf"), "high": 1.0, "limit": 1.0}}},
        {"activations": {"x": {"low": float("nan"), "high": 1.0, "limit": 1.0}}},
        {"activations": {"x": {"low": 0.0, "high": 1e300, "limit": 1.0}}},
        {"activations": []},
        {"weights": {"w": [0.0]}},
        {"weights": {"w": [-1.0]}},
        {"weights": {"w": "0.1"}},
        {"channel_scales": {"g": [0.0]}},
        {"bias_shift": {"s4": {}}},
        {"bias_shift": {"s8": {"b": [float("inf")]}}},
        {"ladder": [{"step": "x"}]},
        {"surprise": 1},
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(GOOD))
    QuantPlan.load(path)
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ArtifactError):
        QuantPlan.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"version": 1}', "\x00"])
def test_files_that_are_no_plan_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ArtifactError):
        QuantPlan.load(path)


@given(item=ranges)
def test_zero_is_exact_in_every_profile(item: ActivationRange) -> None:
    for profile in PROFILES:
        params = item.params(profile)
        assert params.quant_min <= params.zero_point <= params.quant_max
        assert params.low <= 0 <= params.high
        assert params.dtype == (np.uint8 if profile == "u8" else np.int8)


@given(item=ranges)
def test_folding_uses_the_affine_grid_less_128(item: ActivationRange) -> None:
    affine, signed = item.params("u8"), item.params("s8")
    if item.folds_zero_point:
        assert (signed.low, signed.high) == (affine.low, affine.high)
        assert signed.zero_point == affine.zero_point - 128
    else:
        assert signed.zero_point == 0
        assert signed.high == pytest.approx(item.limit, rel=1e-6)


def test_an_empty_range_cannot_be_made() -> None:
    with pytest.raises(ValidationError):
        ActivationRange(low=0, high=0, limit=1)


@given(scale=bounds, seed=st.integers(0, 99))
def test_weights_round_to_the_nearest_integer_below_128(scale: float, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(4, 3)) * 100 * scale
    integers = quantize_weight(weight, np.full(3, scale), axis=1)
    assert np.abs(integers.astype(int)).max() <= 127
    inside = np.abs(weight) <= 127 * scale
    assert (np.abs(integers * scale - weight)[inside] <= scale * 0.5001).all()
