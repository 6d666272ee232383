"""QDQ emission: exact against torch, and spelled as the runtimes want it."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from attention_kinds import RECIPE_KINDS
from export_networks import SHAPE, make_edge, make_images
from onnx import numpy_helper

from edgeattn.attention import attentions
from edgeattn.errors import ModelError, ParityError
from edgeattn.export.fake_quant import (
    _ChannelWeights,
    attach_fake_quant,
    attach_trainable,
    fixed_constants,
    read_back,
    write_constants,
)
from edgeattn.export.float_onnx import export_float
from edgeattn.export.qdq import emit_qdq
from edgeattn.export.reorder import reorder_channels
from edgeattn.export.selfcheck import check_export
from edgeattn.onnx_graph import Graph
from edgeattn.quant.apply import apply_plan_constants
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.gates import gate_regions
from edgeattn.quant.learned_rounding import learn_rounding
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import PROFILES, Profile, QuantPlan
from edgeattn.quant.ptq import make_plan

# One estimator, so that both profiles begin with the same extents: training learns one for the two.
FAST = PtqConfig(range_estimator="mean_minmax", tuning_steps=0, bias_correction=False, rounding=False)
QUICK = FAST.model_copy(update={"nncf": False, "importance": False, "equalization": False})
# The whole ladder once, for the bare network; what is emitted does not depend on who found the ranges.
TUNED = QUICK.model_copy(update={"tuning_steps": 2, "equalization": True})
EXACT = TUNED.model_copy(update={"exact": True})


@functools.cache
def _planned(kind: str, arch: str = "mobilenet_v2"):  # type: ignore[no-untyped-def]
    edge = make_edge(kind, arch)
    export = export_float(edge, SHAPE)
    config = FAST if kind == "none" else QUICK
    plan = make_plan(export.model, make_images(16), config, gate_regions(edge, "int8"))
    return edge, export, plan


@functools.cache
def _tuned(kind: str, config: PtqConfig = TUNED):  # type: ignore[no-untyped-def]
    edge = make_edge(kind, materialize=True)
    export = export_float(edge, SHAPE)
    fixed = fixed_constants(edge, export)
    gates = gate_regions(edge, "int8")
    return edge, export, make_plan(export.model, make_images(16), config, gates, fixed=fixed)


def _exact(kind: str):  # type: ignore[no-untyped-def]
    return _tuned(kind, EXACT)


def _exact_in_training(kind: str):  # type: ignore[no-untyped-def]
    """As after training: the form computes weights and biases from the float module's; none may be adjusted."""
    edge = make_edge(kind)
    export = export_float(edge, SHAPE)
    config = QUICK.model_copy(update={"exact": True, "tuning_steps": 2})
    gates, fixed = gate_regions(edge, "int8"), fixed_constants(edge, export)
    assert fixed
    return edge, export, make_plan(export.model, make_images(16), config, gates, fixed=fixed)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        *((kind, make) for kind in ("none", *RECIPE_KINDS) for make in (_planned, _tuned)),
        ("coord", _exact),
        ("triplet", _exact_in_training),
    ],
)
def test_every_integer_is_within_one_step_of_torch(kind: str, make: Any) -> None:
    edge, export, plan = make(kind)
    for profile in PROFILES:
        adjusted = Graph(export.model)
        apply_plan_constants(adjusted, plan, profile)
        module = write_constants(edge, export, adjusted)
        model = emit_qdq(export.model, plan, profile, reorders_channels=False)
        images = make_images(2, seed=1)
        found = check_export(attach_fake_quant(module, export, plan, profile), model, images)
        assert plan.channel_orders
        assert reorder_channels(model, export.model, plan, profile, images) != model
        assert found.largest_lsb <= 1
        assert found.share_different < 0.005
        assert found.tensors > 25


def test_learned_roundings_reach_the_file_and_torch_alike() -> None:
    edge = make_edge("coord", materialize=True)
    export = export_float(edge, SHAPE)
    place = place_quantizers(export.model, gate_regions(edge, "int8"))
    plan = make_plan(export.model, make_images(8), QUICK, gate_regions(edge, "int8"))
    fixed = fixed_constants(edge, export)
    found = learn_rounding(plan, Graph(export.model), place, make_images(8), None, fixed)
    assert found.changed > 0.03 * found.weights
    for profile in PROFILES:
        adjusted = _adjusted(export, found.plan, profile)
        quantized = attach_fake_quant(write_constants(edge, export, adjusted), export, found.plan, profile)
        rounded = emit_qdq(export.model, found.plan, profile, reorders_channels=False)
        assert check_export(quantized, rounded, make_images(2, seed=1)).largest_lsb <= 1
        # The check tells roundings apart: the file with nearest integers is another one.
        unrounded = found.plan.model_copy(update={"roundings": {}})
        with pytest.raises(ParityError):
            check_export(
                quantized,
                emit_qdq(export.model, unrounded, profile, reorders_channels=False),
                make_images(2, seed=1),
            )


# Exporting a network with Triplet Attention takes seconds: by default, only the form that CPUs prefer.
OTHER_FORMS = [
    pytest.param(
        kind, form, marks=[pytest.mark.slow] if kind == "triplet" and form != "short_axis_pool" else []
    )
    for kind in RECIPE_KINDS
    for form in attentions.get(kind).edge_forms
    if form != attentions.get(kind).default_form
]


@pytest.mark.parametrize(("kind", "form"), OTHER_FORMS)
def test_every_form_can_be_exported_and_checked(kind: str, form: str) -> None:
    edge = make_edge(kind, form=form)
    export = export_float(edge, SHAPE)
    plan = make_plan(export.model, make_images(8), QUICK, gate_regions(edge, "int8"))
    module = write_constants(edge, export, _adjusted(export, plan, "u8"))
    model, images = emit_qdq(export.model, plan, "u8", reorders_channels=False), make_images(1, seed=1)
    found = check_export(attach_fake_quant(module, export, plan, "u8"), model, images)
    reorder_channels(model, export.model, plan, "u8", images)
    assert found.largest_lsb <= 1
    assert found.tensors > 25


def test_swish_networks_are_quantized_where_hooks_reach() -> None:
    edge, export, plan = _planned("none", "efficientnet_b0")
    found = check_export(
        attach_fake_quant(write_constants(edge, export, _adjusted(export, plan, "u8")), export, plan, "u8"),
        emit_qdq(export.model, plan, "u8", reorders_channels=False),
        make_images(1, seed=1),
    )
    assert found.largest_lsb <= 1


def test_uses_of_one_layer_keep_the_bias_that_it_has() -> None:
    edge, export, plan = _exact("coord")
    owners = {
        origin.bias: origin.norm.rpartition("/")[0] for origin in export.weights.values() if origin.norm
    }
    shared = {bias for bias, norm in owners.items() if list(owners.values()).count(norm) > 1}
    assert shared
    assert shared <= fixed_constants(edge, export)
    assert not shared & set(plan.bias_shift["u8"])
    assert plan.bias_shift["u8"]


def _adjusted(export, plan: QuantPlan, profile: Profile) -> Graph:  # type: ignore[no-untyped-def]
    graph = Graph(export.model)
    apply_plan_constants(graph, plan, profile)
    return graph


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("fault", ["scale", "weight", "bias", "classifier"])
def test_a_planted_fault_is_found_and_named(profile: Profile, fault: str) -> None:
    edge, export, plan = _planned("none")
    model = emit_qdq(export.model, plan, profile, reorders_channels=False)
    planted = {
        "scale": ".scale",
        "weight": ".weight.quantized",
        "bias": "folded_bias",
        "classifier": "classifier.1.weight.quantized",
    }[fault]
    item = next(
        item
        for item in model.graph.initializer
        if item.name.endswith(planted) and (fault != "scale" or item.name.startswith("features/4"))
    )
    value = numpy_helper.to_array(item)
    changed = {
        "scale": lambda: value * 2,
        "bias": lambda: value + 1,
        "weight": lambda: np.roll(value, 1, axis=0),
        "classifier": lambda: np.roll(value, 1, axis=0),
    }
    item.CopyFrom(numpy_helper.from_array(changed[fault]().astype(value.dtype), item.name))
    module = write_constants(edge, export, _adjusted(export, plan, profile))
    with pytest.raises(ParityError, match=r"features/|output"):
        check_export(attach_fake_quant(module, export, plan, profile), model, make_images(2, seed=1))


@pytest.mark.parametrize("profile", PROFILES)
def test_weights_are_int8_per_channel_and_activations_match_the_profile(profile: Profile) -> None:
    _, export, plan = _planned("coord")
    model = emit_qdq(export.model, plan, profile)
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            weight, scale, zero = (constants[name] for name in node.input)
            assert weight.dtype == np.int8
            assert scale.ndim == 1
            assert not zero.any()
            assert weight.min() >= -127
        elif node.op_type == "QuantizeLinear":
            zero = constants[node.input[2]]
            assert zero.dtype == (np.uint8 if profile == "u8" else np.int8)
            if profile == "s8":
                assert zero == 0


def test_u8_absorbs_every_clip_behind_a_convolution() -> None:
    _, export, plan = _planned("none")
    operators = [node.op_type for node in emit_qdq(export.model, plan, "u8").graph.node]
    assert "Clip" not in operators
    assert "Relu" not in operators


def test_s8_leaves_the_convolutions_branch_of_an_add_alone() -> None:
    _, export, plan = _planned("none")
    graph = Graph(emit_qdq(export.model, plan, "s8"))
    adds = [node for node in graph.nodes if node.op_type == "Add"]
    assert adds
    for node in adds:
        kinds = sorted(graph.producer[name].op_type for name in node.input)
        assert kinds == ["Conv", "DequantizeLinear"]


def test_no_scalar_constant_is_quantized() -> None:
    for kind in RECIPE_KINDS:
        _, export, plan = _planned(kind)
        graph = Graph(emit_qdq(export.model, plan, "s8"))
        for node in graph.nodes:
            if node.op_type == "QuantizeLinear":
                assert node.input[0] not in graph.constants


def test_a_plan_of_another_graph_is_refused() -> None:
    _, export, _ = _planned("none")
    _, _, other = _planned("coord")
    with pytest.raises(ModelError, match="calibrate this one"):
        emit_qdq(export.model, other, "u8")


def test_float_gates_stay_float_but_for_the_full_map() -> None:
    edge = make_edge("coord")
    export = export_float(edge, SHAPE)
    plan = make_plan(export.model, make_images(16), FAST, gate_regions(edge, "float"))
    # The first block with a gate: its map is larger than one pixel, so pooled maps can be told from it.
    inside = [name for name in plan.activations if name.startswith("features/2/conv/attention/")]
    assert inside
    assert not any("conv1" in name or "bn1" in name for name in inside)
    sigmoids = [name for name in inside if "sigmoid" in name]
    assert sigmoids
    for name in sigmoids:
        assert (plan.activations[name].low, plan.activations[name].high) == (0.0, 1.0)


def test_training_quantizers_start_where_ptq_ended_and_share_parameters() -> None:
    edge, export, plan = _planned("coord")
    placement = place_quantizers(export.model, gate_regions(edge, "int8"))
    quantized = attach_trainable(edge, export, plan, placement)
    own = {id(parameter) for parameter in edge.parameters()}
    assert own <= {id(parameter) for parameter in quantized.module.parameters()}
    back = read_back(quantized, export, plan, placement)
    assert back.method == "qat"
    for name, scales in plan.weights.items():
        assert np.allclose(back.weights[name], scales, rtol=1e-5)
    for name, wanted in plan.activations.items():
        assert back.activations[name].limit == pytest.approx(wanted.limit, rel=1e-5)
    quantized.module(torch.randn(2, *SHAPE[1:])).square().sum().backward()
    moved = [module.limit.grad for module in quantized.activations.values() if module.limit.requires_grad]
    assert sum(grad is not None and bool(grad.abs().sum() > 0) for grad in moved) > len(moved) // 2


def test_written_constants_make_the_module_compute_the_adjusted_graph() -> None:
    edge, export, _ = _planned("none")
    graph = Graph(export.model)
    name, origin = next((n, o) for n, o in export.weights.items() if o.norm)
    graph.constants[name] = (graph.constants[name] * 1.5).astype(np.float32)
    graph.constants[origin.bias] = (graph.constants[origin.bias] + 0.25).astype(np.float32)
    before = copy.deepcopy(edge.state_dict())
    changed = export_float(write_constants(edge, export, graph), SHAPE)
    again = Graph(changed.model)
    assert np.allclose(again.constants[name], graph.constants[name], atol=1e-6)
    assert np.allclose(again.constants[origin.bias], graph.constants[origin.bias], atol=1e-5)
    for key, value in edge.state_dict().items():
        assert torch.equal(before[key], value)


def test_emission_is_valid_onnx_with_fixed_shapes() -> None:
    _, export, plan = _planned("triplet")
    model = emit_qdq(export.model, plan, "s8")
    onnx.checker.check_model(model, full_check=True)
    inputs, outputs = Graph(model).io_specs()
    assert inputs[0].shape == SHAPE
    assert outputs[0].shape == (1, 10)


def test_weights_half_way_between_steps_take_the_graphs_integer_and_others_do_not() -> None:
    scales = np.array([0.5, 0.25])
    weight = torch.tensor([[0.25, 0.75, 0.6], [0.125, -0.375, 0.2]])
    graph = np.array([[1, 1, 2], [0, -2, 3]], np.int8)
    found = _ChannelWeights(scales, graph)(weight) / torch.tensor([[0.5], [0.25]])
    # Ties as the graph has them; 1.2 and 0.8 steps are no ties, whatever it says.
    assert found.tolist() == [[1.0, 1.0, 1.0], [0.0, -2.0, 1.0]]


def test_tokens_are_quantized_where_torch_has_a_tensor() -> None:
    """A linear layer over tokens becomes MatMul and Add; torch has no tensor in between."""
    edge = make_edge("vit")
    export = export_float(edge, SHAPE)
    plan = make_plan(export.model, make_images(8), QUICK, gate_regions(edge, "int8"))
    products = [node.output[0] for node in export.model.graph.node if node.op_type == "MatMul"]
    assert any("query" in name for name in products)
    assert not [name for name in products if "query" in name and name in plan.activations]
    assert {name for name in plan.weights if name not in export.weights} == set()
    found = check_export(
        attach_fake_quant(write_constants(edge, export, _adjusted(export, plan, "u8")), export, plan, "u8"),
        emit_qdq(export.model, plan, "u8", reorders_channels=False),
        make_images(1, seed=1),
    )
    assert found.largest_lsb <= 1
