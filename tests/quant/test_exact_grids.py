"""Grids with which runtimes have nothing to round on the way to an integer, and the proof that they agree."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto
from quant_networks import pictures, residual_network

from edgeattn.export.qdq import emit_qdq
from edgeattn.lower.lowering import lower_model
from edgeattn.lower.passes import PASSES
from edgeattn.onnx_graph import Graph
from edgeattn.quant.apply import apply_plan_constants
from edgeattn.quant.channel_order import input_orders
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.exact_grids import exact_grids, whole_biases
from edgeattn.quant.folding import fold_zero_points
from edgeattn.quant.pairs import LARGEST_SAFE_PAIR, worst_pairs
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import PROFILES, Profile, QuantPlan, quantize_weight
from edgeattn.quant.ptq import fit_to_kernels, make_plan
from edgeattn.targets.reference import make_program

BEFORE = PtqConfig(nncf=False, importance=False, tuning_steps=0, headroom="none")
EXACT = BEFORE.model_copy(update={"exact": True, "headroom": "proven"})


def _answers(model: ModelProto, runtime: str, images: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    if runtime == "reference":
        program = make_program(model)
        return np.concatenate([program.run({"input": image})["logits"] for image in images])
    lowered, _ = lower_model(model, runtime)
    if runtime == "ort-cpu":
        session = ort.InferenceSession(lowered.SerializeToString(), providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {"input": image})[0] for image in images])
    openvino = pytest.importorskip("openvino", reason="one of the runtimes that are compared")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(lowered.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return np.concatenate([compiled(image)[0] for image in images])


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("seed", [0, 1, 2, 24])
def test_runtimes_and_the_reference_give_the_same_logits_bit_for_bit(seed: int, profile: Profile) -> None:
    """One image in sixteen may part: a sum larger than any in calibration may not fit float32's 24 bits."""
    model = residual_network(seed)
    plan = make_plan(model, pictures(16, seed), EXACT)
    spelled = emit_qdq(model, plan, profile)
    images = pictures(16, seed + 1)
    expected = _answers(spelled, "reference", images)
    assert len(np.unique(expected)) > 10
    for runtime in ("ort-cpu", "openvino-cpu"):
        off = np.abs(_answers(spelled, runtime, images) - expected).max(axis=1)
        assert np.count_nonzero(off > 1e-5) <= 1, off


def test_openvino_needs_the_pass_that_makes_it_round_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should this fail, OpenVINO rounds them by itself, and the pass can go."""
    others = tuple(item for item in PASSES["openvino-cpu"] if item.name != "round-branches")
    monkeypatch.setitem(PASSES, "openvino-cpu", others)
    model = residual_network(3)
    spelled = emit_qdq(model, make_plan(model, pictures(16, 3), EXACT), "u8")
    found, expected = (_answers(spelled, name, pictures(16, 4)) for name in ("openvino-cpu", "reference"))
    assert np.abs(found - expected).max() > 1e-5


def test_a_trained_plan_becomes_exact_too() -> None:
    """As after QAT: the plan comes from elsewhere, its graph's weights are what they are."""
    model = residual_network(5)
    trained = make_plan(model, pictures(16, 5), BEFORE)
    config = EXACT.model_copy(update={"tuning_steps": 10})
    plan = fit_to_kernels(trained, Graph(model), place_quantizers(model), pictures(16, 5), config)
    spelled = emit_qdq(model, plan, "u8")
    expected = _answers(spelled, "reference", pictures(8, 6))
    for runtime in ("ort-cpu", "openvino-cpu"):
        np.testing.assert_allclose(_answers(spelled, runtime, pictures(8, 6)), expected, rtol=0, atol=1e-5)


def test_exact_grids_without_headroom_are_refused() -> None:
    with pytest.raises(ValueError, match="exact needs weights that cannot saturate"):
        PtqConfig(exact=True, headroom="none")


def test_without_exact_grids_they_do_not() -> None:
    """What the test above would see, were the grids of no use."""
    different = 0
    for seed in range(6):
        model = residual_network(seed, blocks=6)
        spelled = emit_qdq(model, make_plan(model, pictures(16, seed), BEFORE), "u8")
        images = pictures(16, seed + 1)
        found = [_answers(spelled, runtime, images) for runtime in ("ort-cpu", "openvino-cpu")]
        different += int(np.abs(found[0] - found[1]).max() > 1e-5)
    assert different >= 4


@pytest.fixture(scope="module")
def planned() -> tuple[ModelProto, QuantPlan]:
    model = residual_network(3)
    return model, make_plan(model, pictures(16, 3), EXACT)


def test_steps_are_powers_of_two_and_zero_points_even(planned: tuple[ModelProto, QuantPlan]) -> None:
    _, plan = planned
    assert plan.provenance["grids"] == "exact"
    for name, item in plan.activations.items():
        params = item.params("u8")
        assert math.frexp(params.scale)[0] == 0.5, name
        assert params.zero_point % 2 == 0, name


def test_steps_of_s8_are_powers_of_two_and_its_biases_whole_with_what_is_folded_into_them(
    planned: tuple[ModelProto, QuantPlan],
) -> None:
    model, plan = planned
    assert any(item.folds_zero_point for item in plan.activations.values())
    graph = Graph(model)
    apply_plan_constants(graph, plan, "s8")
    fold_zero_points(graph, plan)
    for node in graph.nodes:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        scale = plan.activations[node.input[0]].params("s8").scale
        assert math.frexp(scale)[0] == 0.5, node.name
        step = scale * np.asarray(plan.weights[node.input[1]])
        bias = graph.constants[node.input[2]].astype(np.float64)
        np.testing.assert_array_equal(bias / step, np.rint(bias / step))


def test_clips_are_still_absorbed(planned: tuple[ModelProto, QuantPlan]) -> None:
    """One that stays makes ONNX Runtime compute convolution and clip in float."""
    model, plan = planned
    assert not [node for node in emit_qdq(model, plan, "u8").graph.node if node.op_type in ("Clip", "Relu")]


def test_products_with_weight_scales_and_biases_fit_float32(planned: tuple[ModelProto, QuantPlan]) -> None:
    model, plan = planned
    graph = Graph(model)
    apply_plan_constants(graph, plan, "u8")
    place = place_quantizers(model)
    orders = input_orders(graph, plan.channel_orders)
    for node in graph.nodes:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        scales = np.asarray(plan.weights[node.input[1]])
        mantissa = np.frexp(scales)[0] * 2**8
        np.testing.assert_array_equal(mantissa, np.rint(mantissa))
        step = plan.activations[node.input[0]].params("u8").scale * scales
        bias = graph.constants[node.input[2]].astype(np.float64)
        np.testing.assert_array_equal(bias / step, np.rint(bias / step))
        rows = np.moveaxis(graph.constants[node.input[1]], place.weights[node.input[1]], 0)
        if rows.shape[1] > 1:
            rows = rows[:, orders.get(node.input[1], slice(None))]
            assert worst_pairs(quantize_weight(rows, scales)).max() <= LARGEST_SAFE_PAIR


def test_the_function_stays(planned: tuple[ModelProto, QuantPlan]) -> None:
    model, plan = planned
    exact, before = (
        next(step for step in ladder if step.step.startswith(name))
        for ladder, name in (
            (plan.ladder, "exact grids"),
            (make_plan(model, pictures(16, 3), BEFORE).ladder, "ranges: mean_minmax"),
        )
    )
    assert exact.sqnr_db_u8 > before.sqnr_db_u8 - 6


def test_a_second_time_changes_no_activation(planned: tuple[ModelProto, QuantPlan]) -> None:
    model, plan = planned
    again = exact_grids(plan, Graph(model), place_quantizers(model), pictures(16, 3))
    for name, item in plan.activations.items():
        assert again.activations[name].params("u8") == item.params("u8")
    biases = whole_biases(plan, Graph(model), place_quantizers(model)).bias_shift
    for profile in PROFILES:
        for name, values in plan.bias_shift[profile].items():
            np.testing.assert_allclose(biases[profile][name], values, atol=1e-9)
