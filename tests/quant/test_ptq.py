"""Post-training quantization climbs from step to step, and its plans keep what placement promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, numpy_helper
from quant_networks import inverted_residual, pictures, run
from short_networks import shortened

from edgeattn.errors import DataError
from edgeattn.export.float_onnx import export_float
from edgeattn.export.qdq import emit_qdq
from edgeattn.models import create_model, insert_attention, to_edge_form
from edgeattn.onnx_graph import Graph
from edgeattn.quant import simulation
from edgeattn.quant.config import AUTO_ESTIMATORS, GatePolicy, PtqConfig
from edgeattn.quant.gates import gate_regions
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import PROFILES, Profile, QuantPlan
from edgeattn.quant.ptq import make_plan
from edgeattn.quant.tuning import tune_plan

QUICK = PtqConfig(tuning_steps=0, rounding=False)


def test_steps_come_in_order_and_are_kept_only_where_they_help() -> None:
    plan = make_plan(inverted_residual(), pictures(48), PtqConfig(tuning_steps=20, headroom="none"))
    *_, last = plan.ladder
    assert [step.step for step in plan.ladder] == [
        "ranges: mean_minmax",
        "ranges: minmax",
        "ranges: mse",
        "NNCF",
        "channel equalization",
        "importance-weighted ranges",
        "tuning of biases and ranges: u8",
        "tuning of biases and ranges: s8",
        last.step,
    ]
    assert last.step.startswith("learned rounding: ")
    kept = [step.sqnr_db_u8 + step.sqnr_db_s8 for step in plan.ladder if step.kept]
    assert kept == sorted(kept)
    assert bool(plan.channel_scales) == any(step.kept for step in plan.ladder[3:5])
    tuned = {profile for profile, step in zip(reversed(PROFILES), plan.ladder[6:8], strict=True) if step.kept}
    assert tuned <= set(plan.bias_shift)


def test_auto_keeps_the_estimator_that_measures_best() -> None:
    """Means of extremes cut the few images that are far larger than the others."""
    images = [image * (30 if index % 8 == 0 else 1) for index, image in enumerate(pictures(32))]
    config = QUICK.model_copy(
        update={"headroom": "none", "nncf": False, "equalization": False, "importance": False}
    )
    plans = {
        name: make_plan(inverted_residual(), images, config.model_copy(update={"range_estimator": name}))
        for name in ("auto", *AUTO_ESTIMATORS)
    }
    measured = {name: sum((p.ladder[0].sqnr_db_u8, p.ladder[0].sqnr_db_s8)) for name, p in plans.items()}
    best = max(AUTO_ESTIMATORS, key=lambda name: measured[name])
    assert best != "mean_minmax"
    assert [step.step for step in plans["auto"].ladder] == [f"ranges: {name}" for name in AUTO_ESTIMATORS]
    assert plans["auto"].activations == plans[best].activations


@pytest.mark.parametrize("bounds", [{"stop_at_sqnr_db": 1.0}, {"stop_at_agreement": 0.0}])
def test_steps_end_once_the_bound_is_met(bounds: dict[str, float]) -> None:
    plan = make_plan(inverted_residual(), pictures(8), PtqConfig(headroom="none", **bounds))
    assert len(plan.ladder) == 1
    assert not plan.channel_scales


def test_the_same_images_make_the_same_plan() -> None:
    config = PtqConfig(tuning_steps=4)
    first, second = (make_plan(inverted_residual(), pictures(8), config) for _ in range(2))
    ignored = {"ladder"}
    assert first.model_dump(exclude=ignored) == second.model_dump(exclude=ignored)


def test_progress_rises_to_its_total() -> None:
    seen: list[tuple[int, int]] = []
    make_plan(
        inverted_residual(), pictures(8), PtqConfig(tuning_steps=2), progress=lambda *now: seen.append(now)
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_no_image_is_refused() -> None:
    with pytest.raises(DataError, match="no calibration image"):
        make_plan(inverted_residual(), [], QUICK)


def test_a_network_of_zeros_gets_a_plan_that_runs() -> None:
    model = inverted_residual()
    for item in model.graph.initializer:
        if item.name.endswith((".weight", ".bias")):
            item.raw_data = bytes(len(item.raw_data))
    images = pictures(8)
    plan = make_plan(model, images, PtqConfig(tuning_steps=2))
    for profile in PROFILES:
        assert not run(emit_qdq(model, plan, profile), images[0])[0].any()


def output_error(model: ModelProto, plan: QuantPlan, profile: Profile, images: list[Any]) -> float:
    """Return the squared error of the quantized graph's outputs."""
    quantized = emit_qdq(model, plan, profile)
    return sum(float(np.square(run(quantized, x)[0] - run(model, x)[0]).sum()) for x in images)


@pytest.mark.parametrize("profile", ["u8", "s8"])
def test_tuning_takes_back_a_shift_of_biases(profile: Profile) -> None:
    model, images = inverted_residual(2), pictures(48)
    graph, place = Graph(model), place_quantizers(model)
    plan = make_plan(model, images, QUICK)
    shifted = plan.model_copy(update={"bias_shift": {profile: {"last.bias": [0.05] * 16}}})
    tuned = tune_plan(graph, shifted, profile, place, images, 60)
    before = output_error(model, shifted, profile, images)
    assert output_error(model, tuned, profile, images) < 0.5 * before


@pytest.mark.parametrize("profile", ["u8", "s8"])
def test_tuning_widens_a_range_that_cuts_too_much(profile: Profile) -> None:
    model, images = inverted_residual(2), pictures(48)
    graph, place = Graph(model), place_quantizers(model)
    plan = make_plan(model, images, QUICK)
    name = next(n for n, item in plan.activations.items() if item.is_quantized("s8") and n != "input")
    item = plan.activations[name]
    narrow = item.model_copy(
        update={
            "low": item.low / 2,
            "high": item.high / 2,
            "limit": item.limit / 2,
            "folds_zero_point": False,
        }
    )
    cut = plan.model_copy(update={"activations": {**plan.activations, name: narrow}})
    tuned = tune_plan(graph, cut, profile, place, images, 80)
    key = "high" if profile == "u8" else "limit"
    assert getattr(tuned.activations[name], key) > 1.2 * getattr(narrow, key)
    before = output_error(model, cut, profile, images)
    assert output_error(model, tuned, profile, images) < 0.7 * before


@pytest.mark.parametrize("profile", ["u8", "s8"])
def test_tuning_never_widens_a_range_beyond_its_clip(profile: Profile) -> None:
    """A clip that the range does not imply would keep its convolution from running in INT8."""
    model, images = inverted_residual(2), pictures(48)
    for item in model.graph.initializer:
        if item.name == "last.weight":
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * 3, item.name))
    plan = make_plan(model, images, PtqConfig(tuning_steps=0, nncf=False, range_estimator="minmax"))
    narrow = plan.activations["last_act"].model_copy(
        update={"high": 5.5, "limit": 5.5, "folds_zero_point": False}
    )
    cut = plan.model_copy(update={"activations": {**plan.activations, "last_act": narrow}})
    tuned = tune_plan(Graph(model), cut, profile, place_quantizers(model), images, 60)
    params = tuned.activations["last_act"].params(profile)
    assert 5.6 < params.high <= 6.0 * (1 + 1e-6)
    assert "Clip" not in [node.op_type for node in emit_qdq(model, tuned, profile).graph.node]


def test_tuning_large_maps_in_parts_is_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = inverted_residual(2), pictures(48)
    place = place_quantizers(model)
    plan = make_plan(model, images, QUICK)
    shifted = plan.model_copy(update={"bias_shift": {"u8": {"last.bias": [0.05] * 16}}})
    whole = tune_plan(Graph(model), shifted, "u8", place, images, 6)
    numbers = sum(
        math.prod(shape) for name, shape in Graph(model).shapes().items() if name in Graph(model).producer
    )
    monkeypatch.setattr(simulation, "_MOST_NUMBERS", 5 * numbers)
    assert simulation.fitting_batch(Graph(model)) == 5
    parts = tune_plan(Graph(model), shifted, "u8", place, images, 6)
    assert whole.bias_shift["u8"].keys() == parts.bias_shift["u8"].keys()
    for name, values in whole.bias_shift["u8"].items():
        moved = np.abs(np.asarray(values) - plan.bias_shift.get("u8", {}).get(name, 0.0)).max()
        # Adam takes the sign of a gradient near 0 for its direction: equal up to few of its steps, the fewer there are.
        np.testing.assert_allclose(parts.bias_shift["u8"][name], values, atol=0.05 * moved + 1e-6)
    for name, item in whole.activations.items():
        assert parts.activations[name].limit == pytest.approx(item.limit, rel=2e-3)


def test_tuning_s8_leaves_what_belongs_to_u8() -> None:
    model, images = inverted_residual(2), pictures(48)
    plan = make_plan(model, images, QUICK.model_copy(update={"nncf": False}))
    tuned = tune_plan(Graph(model), plan, "s8", place_quantizers(model), images, 5)
    for name, item in plan.activations.items():
        assert tuned.activations[name].params("u8") == item.params("u8")
    assert "u8" not in tuned.bias_shift
    assert any(tuned.activations[name].limit != item.limit for name, item in plan.activations.items())


CASES = [
    ("mobilenet_v2", "coord", "fixed"),
    pytest.param("mobilenet_v2", "triplet", "int8", marks=pytest.mark.slow),
    ("mobilenet_v2", "eca", "float"),
    ("efficientnet_b0", "none", "int8"),
]


@pytest.mark.parametrize(("arch", "kind", "policy"), CASES)
def test_networks_with_gates_keep_fixed_and_shared_ranges(arch: str, kind: str, policy: GatePolicy) -> None:
    torch.manual_seed(0)
    module = shortened(create_model(arch, num_classes=5, width=0.35)).eval()
    if kind != "none":
        module = insert_attention(module, kind, identity=False)
    edge = to_edge_form(module.eval(), 32, 32, materialize=True)
    model = export_float(edge, (1, 3, 32, 32)).model
    images = [np.random.default_rng(i).normal(size=(1, 3, 32, 32)).astype(np.float32) for i in range(4)]
    gates = gate_regions(edge, policy)
    plan = make_plan(model, images, PtqConfig(tuning_steps=1), gates)
    place = place_quantizers(model, gates)
    assert set(plan.activations) == set(place.activations) | set(place.same_range)
    for name, source in place.same_range.items():
        assert plan.activations[name].params("u8") == plan.activations[source].params("u8")
        assert plan.activations[name].params("s8") == plan.activations[source].params("s8")
    for name, (low, high) in place.fixed.items():
        assert (plan.activations[name].low, plan.activations[name].high) == (low, high)
    for profile in PROFILES:
        emitted = emit_qdq(model, plan, profile)
        options_free = ort.InferenceSession(emitted.SerializeToString(), providers=["CPUExecutionProvider"])
        assert np.isfinite(options_free.run(None, {"input": images[0]})[0]).all()
