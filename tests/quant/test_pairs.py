"""Sums of two products in 16 bits: which weights can leave them, and weights that cannot."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant_networks import inverted_residual, pictures

from edgeattn.export.qdq import emit_qdq
from edgeattn.measure.pair_saturation import prove_pair_saturation
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.pairs import (
    LARGEST_SAFE_PAIR,
    pair_safe_scales,
    pair_weights,
    with_safe_pairs,
    worst_pairs,
)
from edgeattn.quant.plan import quantize_weight
from edgeattn.quant.ptq import make_plan
from edgeattn.targets.reference import make_program

QUICK = PtqConfig(tuning_steps=0, bias_correction=False, nncf=False, importance=False, equalization=False)


def test_the_bound_is_the_largest_that_cannot_saturate() -> None:
    limit = 2**15 - 1
    assert LARGEST_SAFE_PAIR * 255 <= limit < (LARGEST_SAFE_PAIR + 1) * 255


@pytest.mark.parametrize("weights", list(itertools.product([-127, -64, 1, 64, 65, 127], repeat=2)))
def test_a_pair_is_judged_as_all_activations_would(weights: tuple[int, int]) -> None:
    sums = [weights[0] * a + weights[1] * b for a in (0, 255) for b in (0, 255)]
    reaches = max(sums) > 32767 or min(sums) < -32768
    assert (worst_pairs(np.array([weights]))[0] > LARGEST_SAFE_PAIR) == reaches


def test_an_odd_number_of_channels_is_paired_both_ways() -> None:
    integers = np.arange(1, 13).reshape(1, 3, 2, 2)
    first, second, channels = pair_weights(integers)
    flat = [1, 5, 9, 2, 6, 10, 3, 7, 11, 4, 8, 12]  # channels innermost
    assert list(zip(first[0, :6], second[0, :6], strict=True)) == list(
        zip(flat[::2], flat[1::2], strict=True)
    )
    assert channels[:, 6:8].T.tolist() == [[0, 1], [2, -1]]
    assert (first[0, 7], second[0, 7]) == (9, 0)


@given(st.integers(0, 10_000), st.sampled_from([(4, 6, 1, 1), (3, 3, 3, 3), (5, 8)]))
def test_safe_scales_are_safe_and_touch_only_what_needs_it(seed: int, shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(seed).normal(size=shape)
    scales = np.abs(weight).reshape(shape[0], -1).max(axis=1) / 127
    safe = pair_safe_scales(weight, scales, 0)
    assert worst_pairs(quantize_weight(weight, safe)).max() <= LARGEST_SAFE_PAIR
    needed = worst_pairs(quantize_weight(weight, scales)) > LARGEST_SAFE_PAIR
    np.testing.assert_array_equal(safe != scales, needed)
    assert (safe / scales).max() < 2.1


@given(st.integers(0, 10_000), st.sampled_from([(4, 6, 1, 1), (3, 3, 3, 3), (5, 8)]))
def test_unsafe_pairs_get_their_safe_integers_back_and_others_stay(seed: int, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(seed)
    safe = random.integers(-64, 65, shape).astype(np.int8)
    near = safe + random.integers(-1, 2, shape).astype(np.int8)
    result = with_safe_pairs(near, safe)
    assert worst_pairs(result).max() <= LARGEST_SAFE_PAIR
    assert ((result == near) | (result == safe)).all()
    # What no pair needs back stays: alone or beside its neighbour, 64 is small enough.
    assert (result == near)[np.abs(near) <= 63].all()


def test_depthwise_weights_are_left_alone() -> None:
    weight = np.ones((4, 1, 3, 3))
    scales = np.full(4, 1 / 127)
    np.testing.assert_array_equal(pair_safe_scales(weight, scales, 0), scales)


def quantized(config: PtqConfig, profile: Any) -> Any:
    model = inverted_residual()
    return emit_qdq(model, make_plan(model, pictures(8), config), profile)


@pytest.mark.parametrize("profile", ["u8", "s8"])
def test_a_safe_plan_saturates_nowhere_and_the_usual_one_does(profile: str) -> None:
    usual = quantized(QUICK.model_copy(update={"headroom": "none"}), profile)
    safe = quantized(QUICK.model_copy(update={"headroom": "proven"}), profile)
    assert all(not layer.can_saturate for layer in prove_pair_saturation(safe))
    assert any(layer.can_saturate for layer in prove_pair_saturation(usual))
    image = {"input": pictures(1, seed=4)[0]}
    for model, differs in ((safe, False), (usual, True)):
        exact, emulated = (
            make_program(model, accumulate=how).run(image)["logits"] for how in ("exact", "vpmaddubsw")
        )
        assert np.array_equal(exact, emulated) != differs


def test_activations_that_were_seen_narrow_it_down() -> None:
    model = quantized(QUICK, "u8")
    for layer in prove_pair_saturation(model, {"stem_act.quantized": np.full(8, 100)}):
        if layer.name == "expand_act":
            assert layer.unsafe_on_data == 0
            assert layer.worst_sum_on_data == pytest.approx(layer.worst_sum * 100 / 255, abs=1)
        else:
            assert layer.unsafe_on_data is None
