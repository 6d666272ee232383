"""Learned roundings lower the error on images that were not learned from, within what grids and headroom allow."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from quant_networks import Builder, inverted_residual, pictures, residual_network, run

from edgeattn.export.qdq import emit_qdq
from edgeattn.measure.pair_saturation import prove_pair_saturation
from edgeattn.onnx_graph import Graph
from edgeattn.quant.config import RANGES_ONLY, Headroom, PtqConfig
from edgeattn.quant.exact_grids import count_exact
from edgeattn.quant.headroom import PAIR_LIMIT, largest_pairs
from edgeattn.quant.learned_rounding import LearnedRounding, learn_rounding
from edgeattn.quant.pairs import LARGEST_SAFE_PAIR, worst_pairs
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import PROFILES, Profile, QuantPlan
from edgeattn.quant.ptq import make_plan

ROUNDED = PtqConfig(nncf=False, importance=False, tuning_steps=0)


def coarse(model: ModelProto, plan: QuantPlan, factor: float = 12.0) -> QuantPlan:
    """Return the plan with few integers for every weight, so that rounding is most of the error."""
    weights = {name: [scale * factor for scale in scales] for name, scales in plan.weights.items()}
    return plan.model_copy(update={"weights": weights})


def integers(model: ModelProto, plan: QuantPlan, profile: Profile = "u8") -> dict[str, NDArray[np.int8]]:
    """Return the weights of the exported file."""
    items = {
        item.name: numpy_helper.to_array(item) for item in emit_qdq(model, plan, profile).graph.initializer
    }
    return {name: items[f"{name}.quantized"] for name in plan.weights}


def learn(
    model: ModelProto, plan: QuantPlan, images: list[NDArray[np.float32]], headroom: Headroom = "none"
) -> LearnedRounding:
    return learn_rounding(plan, Graph(model), place_quantizers(model), images, headroom=headroom)


def squared_error(
    model: ModelProto, plan: QuantPlan, profile: Profile, images: list[NDArray[np.float32]]
) -> float:
    quantized = emit_qdq(model, plan, profile)
    return sum(float(np.square(run(quantized, x)[0] - run(model, x)[0]).sum()) for x in images)


def smooth(count: int, seed: int) -> list[NDArray[np.float32]]:
    """Images whose channels and places vary together, as those of photographs do."""
    random = np.random.default_rng(seed)
    mix = np.random.default_rng(9).normal(size=(3, 12))
    noise = random.normal(size=(count, 3, 4, 4)).repeat(2, 2).repeat(2, 3)
    noise = noise + 0.2 * random.normal(size=noise.shape)
    return [np.einsum("chw,cd->dhw", item, mix)[None].astype(np.float32) for item in noise]


def convolution(kernel: int, group: int) -> ModelProto:
    b = Builder(4)
    return b.model(b.conv("input", "only", 12, 12, kernel=kernel, group=group), (1, 12, 8, 8), 12)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("kernel", "group"), [(1, 1), (3, 1), (3, 12), (3, 3)])
def test_a_convolution_errs_less_on_images_not_learned_from(
    kernel: int, group: int, profile: Profile
) -> None:
    model = convolution(kernel, group)
    plan = coarse(model, make_plan(model, smooth(16, 1), RANGES_ONLY))
    learned = learn(model, plan, smooth(32, 1)).plan
    unseen = smooth(16, 2)
    assert squared_error(model, learned, profile, unseen) < 0.7 * squared_error(model, plan, profile, unseen)


@pytest.mark.parametrize("settled", [None, "before", "now"])
def test_biases_take_the_mean_of_what_has_changed_since_they_were_found(settled: str | None) -> None:
    """Those that were found with the scales of now hold the mean of the nearest integers already."""
    model = convolution(1, 1)
    before = make_plan(model, smooth(16, 1), RANGES_ONLY)
    plan = coarse(model, before)
    scales = {None: None, "before": before.weights, "now": plan.weights}[settled]
    images = smooth(32, 1)
    found = learn_rounding(plan, Graph(model), place_quantizers(model), images, settled=scales).plan
    fitted = {None: model, "before": emit_qdq(model, before, "u8"), "now": emit_qdq(model, plan, "u8")}[
        settled
    ]

    def mean(item: ModelProto) -> NDArray[np.float64]:
        return np.mean([run(item, image)[0].mean((0, 2, 3)) for image in images], axis=0)

    wanted, moved = mean(fitted), mean(emit_qdq(model, found, "u8"))
    untouched = mean(emit_qdq(model, found.model_copy(update={"bias_shift": {}}), "u8"))
    assert np.abs(moved - wanted).max() < 0.2 * np.abs(untouched - wanted).max()


@functools.cache
def learned_network() -> tuple[ModelProto, QuantPlan, LearnedRounding]:
    model = residual_network(0, 2)
    plan = coarse(model, make_plan(model, pictures(16), RANGES_ONLY))
    return model, plan, learn(model, plan, pictures(48))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_network_errs_less_on_images_not_learned_from(profile: Profile) -> None:
    model, plan, found = learned_network()
    unseen = pictures(24, seed=7)
    assert squared_error(model, found.plan, profile, unseen) < 0.8 * squared_error(
        model, plan, profile, unseen
    )


def test_integers_are_the_same_in_both_files_and_one_step_from_nearest_at_most() -> None:
    model, plan, found = learned_network()
    before, after, other = (
        integers(model, plan),
        integers(model, found.plan),
        integers(model, found.plan, "s8"),
    )
    off = {name: after[name].astype(int) - before[name] for name in before}
    assert {int(value) for item in off.values() for value in np.unique(item)} == {-1, 0, 1}
    assert sum(int((item != 0).sum()) for item in off.values()) == found.changed
    assert sum(item.size for item in off.values()) == found.weights
    for name, item in after.items():
        assert np.abs(item.astype(int)).max() <= 127
        np.testing.assert_array_equal(other[name], item)


def test_the_same_images_teach_the_same_roundings() -> None:
    model, plan, found = learned_network()
    assert learn(model, plan, pictures(48)) == found


def test_fixed_weights_and_biases_stay() -> None:
    model, plan, found = learned_network()
    place = place_quantizers(model)
    fixed = frozenset(["first.weight", "head.bias"])
    assert "first.weight" in found.plan.roundings
    assert "head.bias" in found.plan.bias_shift["u8"]
    kept = learn_rounding(plan, Graph(model), place, pictures(48), None, fixed).plan
    assert "first.weight" not in kept.roundings
    assert "head.bias" not in kept.bias_shift["u8"]
    assert "head.weight" in kept.roundings


def test_progress_rises_to_its_total() -> None:
    model, plan, _ = learned_network()
    seen: list[tuple[int, int]] = []
    learn_rounding(plan, Graph(model), place_quantizers(model), pictures(8), lambda *now: seen.append(now))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("seed", range(3))
def test_the_ladder_keeps_the_rung_only_where_it_helps(seed: int) -> None:
    model = inverted_residual(seed)
    plan = make_plan(model, pictures(48), ROUNDED.model_copy(update={"headroom": "proven"}))
    *_, last, step = plan.ladder
    assert step.step.startswith("learned rounding: ")
    gained = step.sqnr_db_u8 + step.sqnr_db_s8 - last.sqnr_db_u8 - last.sqnr_db_s8
    assert step.kept == (gained > 0) == bool(plan.roundings)


def test_proven_headroom_stays_proven() -> None:
    model = inverted_residual(3)
    plan = make_plan(model, pictures(16), RANGES_ONLY.model_copy(update={"headroom": "proven"}))
    free, found = learn(model, plan, pictures(48)), learn(model, plan, pictures(48), "proven")

    def worst(item: QuantPlan) -> int:
        weights = integers(model, item)
        return max(worst_pairs(w).max() for n, w in weights.items() if w.ndim != 4 or w.shape[1] > 1)

    assert worst(plan) <= LARGEST_SAFE_PAIR < worst(free.plan)
    assert worst(found.plan) <= LARGEST_SAFE_PAIR
    assert found.changed > 0.5 * free.changed


def test_roundings_make_no_pair_saturate_that_did_not() -> None:
    """Channels are alike, so some weights of 64.3 had better be 65; but 255 x (65 + 64) is too much."""
    builder = Builder(3)
    builder.conv("input", "only", 8, 8)
    weight = builder.random.uniform(64.25, 64.45, (8, 8, 1, 1)).astype(np.float32)
    builder.constants["only.weight"] = weight
    model = builder.model("only", (1, 8, 8, 8), 8)
    random = np.random.default_rng(5)
    places = 1 - 0.5 * random.random((16, 1, 1, 8, 8)).astype(np.float32)
    images = [place.repeat(8, 1) for place in places]
    plan = make_plan(model, images, RANGES_ONLY).model_copy(update={"weights": {"only.weight": [1.0] * 8}})
    columns = np.concatenate([image.reshape(8, -1).T for image in images])
    levels = torch.from_numpy(np.rint(columns / plan.activations["input"].params("u8").scale))

    def saturated(found: QuantPlan) -> int:
        return int((largest_pairs(levels, integers(model, found)["only.weight"]) > PAIR_LIMIT).sum())

    assert saturated(plan) == 0
    assert saturated(learn(model, plan, images).plan) > 0
    kept = learn(model, plan, images, "measured")
    assert saturated(kept.plan) == 0


def test_exact_grids_stay_exact() -> None:
    model = residual_network(3, 1)
    config = ROUNDED.model_copy(update={"exact": True})
    plan = make_plan(model, pictures(48), config)
    names = [step.step.split(":")[0] for step in plan.ladder]
    assert names.index("exact grids") < names.index("learned rounding") < names.index("biases of whole steps")
    exact, total = count_exact(plan)
    assert exact > 0.9 * total
    found = learn(model, plan, pictures(48), "proven").plan
    assert found.roundings
    assert not any(layer.can_saturate for layer in prove_pair_saturation(emit_qdq(model, found, "u8")))
