"""In profile s8 a tensor behind which a convolution pads may have all 256 levels; its integers are padded then."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from quant_networks import Builder, inverted_residual, pictures, run

from edgeattn.export.qdq import emit_qdq
from edgeattn.onnx_graph import Graph, attribute
from edgeattn.quant.apply import apply_plan_constants
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.folding import can_fold_zero_point
from edgeattn.quant.padded_grids import with_padded_grids
from edgeattn.quant.placement import Placement, place_quantizers
from edgeattn.quant.plan import QuantPlan
from edgeattn.quant.ptq import make_plan

QUICK = PtqConfig(nncf=False, tuning_steps=0, headroom="none", rounding=False, padded_grids=False)


def folded(plan: QuantPlan) -> set[str]:
    return {name for name, item in plan.activations.items() if item.folds_zero_point}


def planned(seed: int = 0) -> tuple[ModelProto, list[np.ndarray], QuantPlan, Placement]:
    model, images = inverted_residual(seed), pictures(8, seed + 1)
    return model, images, make_plan(model, images, QUICK), place_quantizers(model)


def with_folded(plan: QuantPlan, name: str) -> QuantPlan:
    item = plan.activations[name].model_copy(update={"folds_zero_point": True})
    return plan.model_copy(update={"activations": {**plan.activations, name: item}})


def shift_of(plan: QuantPlan, name: str) -> float:
    """What a folded tensor has less than the real value."""
    item = plan.activations[name]
    params = item.params("s8")
    return params.zero_point * params.scale if item.folds_zero_point else 0.0


def test_what_a_padded_convolution_reads_folds_behind_pads_only() -> None:
    graph = Graph(inverted_residual())
    found = {name for name in graph.producer if can_fold_zero_point(graph, name, behind_pads=True)}
    assert found == {"depthwise_act", "expand_act"}
    conv = next(node for node in graph.nodes if node.op_type == "Conv" and node.input[0] == "expand_act")
    conv.attribute.append(onnx.helper.make_attribute("auto_pad", "SAME_UPPER"))
    assert not can_fold_zero_point(graph, "expand_act", behind_pads=True)


def test_only_tensors_that_take_enough_of_the_noise_away_get_a_pad() -> None:
    model, images, plan, place = planned()
    graph = Graph(model)
    before = folded(plan)
    assert "expand_act" not in before
    # All of the noise would be a hundredth of what this tensor has, or a hundred times as much.
    worth = with_padded_grids(plan, graph, place, images, noise=1e-6)
    assert folded(worth) == before | {"expand_act"}
    assert with_padded_grids(plan, graph, place, images, noise=1e6) is plan
    # Nothing else changes, and profile u8 not at all.
    assert worth.model_copy(update={"activations": plan.activations}) == plan
    assert worth.activations["expand_act"].params("u8") == plan.activations["expand_act"].params("u8")


@given(seed=st.integers(0, 1000))
@settings(max_examples=8)
def test_pads_stand_for_zero_at_every_border(seed: int) -> None:
    """From the integers that the graph has, the layer computes what it does in real numbers, padded with zeros."""
    model, images, plan, _ = planned(seed)
    finer = with_folded(plan, "expand_act")
    graph = Graph(emit_qdq(model, finer, "s8"))
    pad = next(node for node in graph.nodes if node.op_type == "Pad")
    assert graph.constants[pad.input[2]].dtype == np.int8
    assert int(graph.constants[pad.input[2]]) == -128
    conv = next(
        node for node in graph.nodes if node.op_type == "Conv" and node.input[0].startswith("expand_act.")
    )
    assert not any(attribute(conv, "pads", [0]))
    adjusted = Graph(model)
    apply_plan_constants(adjusted, finer, "s8")
    name = conv.input[1].removesuffix(".dequantized")
    scales = np.asarray(finer.weights[name], np.float32).reshape(-1, 1, 1, 1)
    weight = torch.from_numpy(graph.constants[f"{name}.quantized"] * scales)
    bias = torch.tensor(adjusted.constants[f"{name.removesuffix('.weight')}.bias"])
    for image in images[:2]:
        padded, got = run(graph.to_model(["expand_act.padded.dequantized", "depthwise_act"]), image)[-2:]
        real = torch.from_numpy(padded[..., 1:-1, 1:-1] - shift_of(finer, "expand_act"))
        wanted = torch.nn.functional.conv2d(real, weight, bias, padding=1, groups=len(weight)).numpy()
        np.testing.assert_allclose(got - shift_of(finer, "depthwise_act"), wanted, atol=1e-4)


def test_a_pad_with_the_zero_point_would_be_found() -> None:
    model, images, plan, _ = planned()
    quantized = emit_qdq(model, with_folded(plan, "expand_act"), "s8")
    graph = Graph(quantized)
    pad = next(node for node in graph.nodes if node.op_type == "Pad")
    before = run(graph.to_model(["depthwise_act.dequantized"]), images[0], "depthwise_act.dequantized")[0]
    graph.constants[pad.input[2]] = np.zeros((), np.int8)
    after = run(graph.to_model(["depthwise_act.dequantized"]), images[0], "depthwise_act.dequantized")[0]
    inner = (..., slice(1, -1), slice(1, -1))
    assert np.array_equal(before[inner], after[inner])
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("exact", [False, True])
def test_the_ladder_tells_what_a_pad_gains(exact: bool) -> None:
    # A residual block whose first map alone is read by a padded convolution: it has nearly all of the noise.
    b = Builder(3)
    x = b.relu6(b.conv("input", "first", 3, 8, kernel=3), "first_act")
    x = b.relu6(b.conv(x, "depthwise", 8, 8, kernel=3, group=8), "depthwise_act")
    b.node("GlobalAveragePool", [b.conv(x, "project", 8, 4)], "pooled")
    b.constant("head.weight", b.random.normal(size=(5, 4)))
    b.constant("head.bias", b.random.normal(size=5))
    b.node("Flatten", ["pooled"], "flat")
    b.node("Gemm", ["flat", "head.weight", "head.bias"], "logits", transB=1)
    model = b.model("logits", (1, 5))
    config = QUICK.model_copy(update={"padded_grids": True, "exact": exact, "headroom": "measured"})
    plan = make_plan(model, pictures(32), config)
    step = next(step for step in plan.ladder if step.step == "256 levels behind pads: s8")
    before = plan.ladder[plan.ladder.index(step) - 1]
    assert step.kept
    assert step.sqnr_db_s8 > before.sqnr_db_s8
    assert "first_act" in folded(plan)
