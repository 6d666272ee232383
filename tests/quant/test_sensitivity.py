"""Sensitivity is what quantizing one layer, and all but one, really does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from onnx import ModelProto, numpy_helper
from quant_networks import Builder, inverted_residual, pictures

from edgeattn.onnx_graph import Graph
from edgeattn.quant.apply import apply_plan_constants
from edgeattn.quant.config import RANGES_ONLY, PtqConfig
from edgeattn.quant.exact_grids import power_of_two_activations
from edgeattn.quant.placement import GateRegion, place_quantizers
from edgeattn.quant.plan import PROFILES, Profile, QuantPlan
from edgeattn.quant.ptq import make_plan
from edgeattn.quant.sensitivity import LayerSensitivity, measure_sensitivity
from edgeattn.quant.simulation import simulated
from edgeattn.quant.torch_graph import TorchGraph, quantizers_of

IMAGES = 4


def _measured(
    model: ModelProto, plan: QuantPlan, profile: Profile = "u8", gates: tuple[GateRegion, ...] = ()
) -> list[LayerSensitivity]:
    place = place_quantizers(model, gates)
    return measure_sensitivity(Graph(model), plan, profile, place, pictures(IMAGES), gates)


@pytest.mark.parametrize("profile", PROFILES)
def test_each_figure_is_that_of_a_whole_run(profile: Profile) -> None:
    """The measured runs begin in the middle; these begin at the input."""
    model = inverted_residual()
    plan = make_plan(model, pictures(16), PtqConfig(tuning_steps=3, headroom="none"))
    graph, place = Graph(model), place_quantizers(model)
    images = torch.from_numpy(np.concatenate(pictures(IMAGES)))
    wanted = TorchGraph(graph)(images)
    quantizers = quantizers_of(plan, profile)
    unshifted = plan.model_copy(update={"bias_shift": {}})
    adjusted = Graph(graph.to_model())
    apply_plan_constants(adjusted, unshifted, profile)
    whole = _noise_db(simulated(graph, plan, profile, place.weights)(images, quantizers), wanted)
    found = _measured(model, plan, profile)
    assert len(found) > 5
    for item in found:
        # Every layer here writes under the name of its weight, with an activation perhaps behind it; but for the last.
        weight = f"{item.name.removesuffix('_act').replace('logits', 'head')}.weight"
        alone, without = TorchGraph(adjusted), simulated(graph, plan, profile, place.weights)
        if weight in plan.weights:
            layer = simulated(graph, unshifted, profile, place.weights).constants[weight]
            alone.constants[weight], without.constants[weight] = layer, alone.constants[weight]
        own = {name: value for name, value in quantizers.items() if name == item.name}
        others = {name: value for name, value in quantizers.items() if name != item.name}
        assert item.alone_sqnr_db == pytest.approx(_noise_db(alone(images, own), wanted), abs=1e-3)
        gain = _noise_db(without(images, others), wanted) - whole
        assert item.gain_db == pytest.approx(gain, abs=1e-3)


def test_a_layer_that_only_changes_its_unit_costs_what_it_cost() -> None:
    """Powers of two divide what a ReLU6 has cut; without its clip in the float graph, that would be cut nowhere."""
    model = inverted_residual(2)
    for item in model.graph.initializer:
        if item.name == "last.weight":
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * 3, item.name))
    plan = make_plan(model, pictures(16), RANGES_ONLY)
    snapped = power_of_two_activations(plan, Graph(model), place_quantizers(model))
    assert max(snapped.channel_scales["last"]) > 1.1
    before, after = (
        next(item for item in _measured(model, found) if item.name == "last_act") for found in (plan, snapped)
    )
    assert after.alone_sqnr_db == pytest.approx(before.alone_sqnr_db, abs=0.2)


def test_a_spoiled_layer_is_the_most_sensitive() -> None:
    model = inverted_residual()
    plan = make_plan(model, pictures(16), RANGES_ONLY)
    name = "expand_act"
    assert name in plan.activations
    wide = plan.activations[name].times(60)
    found = _measured(model, plan.model_copy(update={"activations": {**plan.activations, name: wide}}))
    assert min(found, key=lambda item: item.alone_sqnr_db).name == name
    assert max(found, key=lambda item: item.gain_db).name == name
    assert max(item.gain_db for item in found) > 3


def test_a_gate_is_one_unit_with_all_of_its_layers() -> None:
    builder = Builder(1)
    builder.conv("input", "block/conv/conv2d/0", 3, 8, kernel=3)
    builder.node("GlobalAveragePool", ["block/conv/conv2d/0"], "block/attention/pool/0")
    builder.conv("block/attention/pool/0", "block/attention/fc/conv2d/0", 8, 8)
    builder.node("Sigmoid", ["block/attention/fc/conv2d/0"], "block/attention/sigmoid/0")
    builder.node("Mul", ["block/conv/conv2d/0", "block/attention/sigmoid/0"], "block/attention/mul/0")
    builder.conv("block/attention/mul/0", "last", 8, 4)
    model = builder.model("last", (1, 4, 8, 8))
    gates = (GateRegion("block/attention", "int8"),)
    plan = make_plan(model, pictures(8), RANGES_ONLY, gates)
    found = _measured(model, plan, gates=gates)
    gate = next(item for item in found if item.is_gate)
    assert gate.name == "block/attention"
    inside = [name for name in plan.activations if name.startswith("block/attention/")]
    assert gate.tensors == len(inside) > 2
    assert sum(item.tensors for item in found) == len(plan.activations)
    assert not [item for item in found if not item.is_gate and "attention" in item.name]


def _noise_db(got: torch.Tensor, wanted: torch.Tensor) -> float:
    noise = float((got - wanted).double().square().sum())
    return 10 * math.log10(float(wanted.double().square().sum()) / noise)
