"""Swishes with a gate by channel compute the same, and let factors of channels through."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from quant_networks import Builder, inverted_residual, pictures, run, swish_block

from edgeattn.export.qdq import emit_qdq
from edgeattn.onnx_graph import Graph
from edgeattn.quant.channel_equalization import equalized_plan, gated_if_better
from edgeattn.quant.channel_gates import channel_gates, with_channel_gates
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.equalize import apply_channel_scales, find_groups
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import PROFILES, QuantPlan
from edgeattn.quant.ptq import make_plan

QUICK = PtqConfig(
    range_estimator="minmax", nncf=False, importance=False, tuning_steps=0, headroom="none", rounding=False
)
KINDS = pytest.mark.parametrize("is_hard", [True, False], ids=["hard swish", "swish"])
EMPTY = QuantPlan(method="ptq", activations={}, weights={})


def gated(model: ModelProto) -> ModelProto:
    found = with_channel_gates(model)
    assert found is not None
    return found


def equalized(model: ModelProto, images: list[np.ndarray]) -> QuantPlan:
    plan = equalized_plan(EMPTY, Graph(model), place_quantizers(model), images, "minmax", QUICK)
    assert plan is not None
    return plan


def sqnr_db(model: ModelProto, other: ModelProto, images: list[np.ndarray]) -> float:
    pairs = [(run(model, image)[0].astype(np.float64), run(other, image)[0]) for image in images]
    noise = sum(float(np.square(wanted - got).sum()) for wanted, got in pairs)
    return 10 * float(np.log10(sum(float(np.square(wanted).sum()) for wanted, _ in pairs) / noise))


@given(seed=st.integers(0, 10_000), spread=st.floats(1, 1000), is_hard=st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_gate_by_channel_computes_the_same_with_any_factors(
    seed: int, spread: float, is_hard: bool
) -> None:
    model = swish_block(seed, spread=spread, is_hard=is_hard)
    graph = Graph(gated(model))
    (group,) = [group for group in find_groups(graph) if group.is_free]
    assert group.tensors == ("expand", "swish")
    apply_channel_scales(graph, {group.name: np.random.default_rng(seed).uniform(0.01, 1, 24).tolist()})
    for image in pictures(3, seed):
        wanted = run(model, image)[0]
        for same in (gated(model), graph.to_model()):
            np.testing.assert_allclose(
                run(same, image)[0], wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max()
            )


@KINDS
def test_only_swishes_between_a_layer_and_depthwise_ones_get_one(is_hard: bool) -> None:
    graph = Graph(gated(swish_block(is_hard=is_hard)))
    (item,) = channel_gates(graph)
    assert (item.source, item.result) == ("expand", "swish")
    assert [node.op_type for node in graph.nodes].count("HardSwish") == is_hard
    assert with_channel_gates(inverted_residual()) is None


def test_a_sigmoid_that_others_read_stays() -> None:
    b = Builder()
    x = b.conv("input", "expand", 3, 3)
    sigmoid = b.node("Sigmoid", [x], "sigmoid")
    y = b.conv(b.node("Mul", [sigmoid, x], "swish"), "depthwise", 3, 3, kernel=3, group=3)
    assert with_channel_gates(b.model(y, (1, 3, 8, 8))) is not None
    assert with_channel_gates(b.model(b.node("Add", [y, sigmoid], "sum"), (1, 3, 8, 8))) is None


@pytest.mark.parametrize("reader", ["input", "swish", "expand"])
def test_a_hard_swish_whose_tensors_others_read_stays(reader: str) -> None:
    b = Builder()
    source = "input" if reader == "input" else b.conv("input", "expand", 3, 3)
    swish = b.node("HardSwish", [source], "swish")
    y = b.conv(swish, "depthwise", 3, 3, kernel=3, group=3)
    y = y if reader == "input" else b.node("Add", [y, reader], "sum")
    assert with_channel_gates(b.model(y, (1, 3, 8, 8))) is None


@pytest.mark.parametrize("change", ["bias", "bounds", "another tensor"])
def test_what_bends_elsewhere_is_no_gate(change: str) -> None:
    graph = Graph(gated(swish_block()))
    (item,) = channel_gates(graph)
    clip = graph.producer[item.gate]
    if change == "bias":
        graph.constants[item.bias] = graph.constants[item.bias] + np.float32(0.01)
    elif change == "bounds":
        graph.constants[clip.input[2]] = np.asarray(0.9, np.float32)
    else:
        graph.producer[clip.input[0]].input[0] = "depthwise"
    graph.reindex()
    assert channel_gates(graph) == []


@KINDS
@pytest.mark.parametrize("profile", PROFILES)
def test_factors_bring_back_what_one_scale_for_all_channels_loses(profile: str, is_hard: bool) -> None:
    model, images = swish_block(is_hard=is_hard), pictures(8)
    plain = emit_qdq(model, make_plan(model, images, QUICK), profile)  # type: ignore[arg-type]
    better = gated(model)
    scaled = emit_qdq(better, equalized(better, images), profile)  # type: ignore[arg-type]
    unseen = pictures(8, seed=99)
    assert sqnr_db(model, scaled, unseen) > sqnr_db(model, plain, unseen) + 8


def test_ranges_end_where_the_last_hard_swish_becomes_zero() -> None:
    model, images = gated(swish_block()), pictures(8)
    plan = equalized(model, images)
    (item,) = channel_gates(Graph(model))
    lowest = -max(3 / factor for factor in plan.channel_scales[item.source])
    assert lowest <= plan.activations[item.source].low < -3
    assert plan.activations[item.gate].high == pytest.approx(1.0)


def test_gates_are_taken_where_they_help_only() -> None:
    images = pictures(8)
    assert gated_if_better(swish_block(), images, QUICK) is not None
    assert gated_if_better(swish_block(is_hard=False), images, QUICK) is not None
    assert gated_if_better(swish_block(spread=1.0), images, QUICK) is None
    assert gated_if_better(inverted_residual(), images, QUICK) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeattn.quant.channel_equalization._GOOD_DB", 10.0)
        assert gated_if_better(swish_block(), images, QUICK) is None, "good enough without"
    assert gated_if_better(swish_block(), images, QUICK.model_copy(update={"equalization": False})) is None


@KINDS
@pytest.mark.parametrize("exact", [False, True])
def test_the_whole_ladder_keeps_what_a_gate_is(exact: bool, is_hard: bool) -> None:
    model, images = gated(swish_block(is_hard=is_hard)), pictures(16)
    (item,) = channel_gates(Graph(model))
    config = PtqConfig(tuning_steps=10, exact=exact, nncf=False)
    plan = make_plan(model, images, config, fixed=frozenset({item.bias}))
    step = next(step for step in plan.ladder if step.step.startswith("channel equalization"))
    assert step.step == "channel equalization through swishes: 1"
    assert step.kept
    assert all(item.bias not in shift for shift in plan.bias_shift.values())
    for profile in PROFILES:
        assert sqnr_db(model, emit_qdq(model, plan, profile), pictures(8, seed=99)) > 25
