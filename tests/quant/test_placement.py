"""Where a graph is quantized: closed regions, shared ranges, gate policies, and what is fused away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeattn.onnx_graph import Graph
from edgeattn.quant.extents import with_extents
from edgeattn.quant.placement import GateRegion, Placement, place_quantizers
from edgeattn.quant.plan import QuantPlan


def model_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    channels: int = 4,  # type: ignore[type-arg]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, channels, 6, 6))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], output, **attributes)


def weight(out: int, channels: int = 4, *kernel: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.ones((out, channels, *(kernel or (1, 1))), np.float32)


LAST = node("Conv", "last wl", "logits")


def gate_model() -> onnx.ModelProto:
    return model_of(
        [
            node("Conv", "input w0", "stem"),
            node("AveragePool", "stem", "gate/pool", kernel_shape=[6, 6]),
            node("Conv", "gate/pool w1", "gate/conv"),
            node("Sigmoid", "gate/conv", "gate/sigmoid"),
            node("Mul", "stem gate/sigmoid", "gate/mul"),
            node("Conv", "gate/mul wl", "logits"),
        ],
        {"w0": weight(4), "w1": weight(4), "wl": weight(2)},
    )


def test_a_region_is_closed_and_the_output_stays_float() -> None:
    place = place_quantizers(gate_model())
    expected = ("input", "stem", "gate/pool", "gate/conv", "gate/sigmoid", "gate/mul")
    assert place.activations == expected
    assert set(place.weights) == {"w0", "w1", "wl"}


@pytest.mark.parametrize(
    ("policy", "quantized", "fixed"),
    [
        ("int8", {"gate/pool", "gate/conv", "gate/sigmoid", "gate/mul"}, set()),
        ("fixed", {"gate/pool", "gate/conv", "gate/sigmoid", "gate/mul"}, {"gate/sigmoid"}),
        ("float", {"gate/sigmoid", "gate/mul"}, {"gate/sigmoid"}),
    ],
)
def test_a_gate_policy_holds_for_its_module(policy: str, quantized: set[str], fixed: set[str]) -> None:
    place = place_quantizers(gate_model(), [GateRegion("gate", policy)])  # type: ignore[arg-type]
    assert {name for name in place.activations if name.startswith("gate/")} == quantized
    assert set(place.fixed) == fixed
    assert all(place.fixed[name] == (0.0, 1.0) for name in fixed)


def test_a_float_gate_keeps_its_weights_float() -> None:
    place = place_quantizers(gate_model(), [GateRegion("gate", "float")])
    assert "w1" not in place.weights


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_an_activation_behind_a_float_convolution_stays_float(activation: str) -> None:
    """As in the hidden layer of a gate: a pair there is noise, and makes ONNX Runtime quantize the float weight."""
    model = model_of(
        [
            node("Conv", "input w0", "stem"),
            node("MaxPool", "stem", "gate/pool", kernel_shape=[6, 6]),
            node("Conv", "gate/pool w1", "gate/hidden"),
            node(activation, "gate/hidden", "gate/active"),
            node("Conv", "gate/active w2", "gate/conv"),
            node("Sigmoid", "gate/conv", "gate/sigmoid"),
            node("Mul", "stem gate/sigmoid", "gate/mul"),
            node("Conv", "gate/mul wl", "logits"),
        ],
        {"w0": weight(4), "w1": weight(4), "w2": weight(4), "wl": weight(2)},
    )
    assert "gate/active" in place_quantizers(model, [GateRegion("gate", "int8")]).activations
    place = place_quantizers(model, [GateRegion("gate", "float")])
    assert "gate/active" not in (*place.activations, *place.same_range)


def test_a_prefix_is_a_whole_path() -> None:
    place = place_quantizers(gate_model(), [GateRegion("ga", "float")])
    assert "gate/conv" in place.activations


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_what_a_fused_activation_reads_is_not_quantized(activation: str) -> None:
    model = model_of(
        [node("Conv", "input w0", "stem"), node(activation, "stem", "last"), LAST],
        {"w0": weight(4), "wl": weight(2)},
    )
    assert place_quantizers(model).activations == ("input", "last")


def scaled(factor: float) -> Placement:
    return place_quantizers(
        model_of(
            [
                node("Conv", "input w0", "one"),
                node("Sigmoid", "one", "gate"),
                node("Add", "gate input", "sum"),
                node("Mul", "sum factor", "last"),
                LAST,
            ],
            {"w0": weight(4), "wl": weight(2), "factor": np.float32(factor)},
        )
    )


def test_a_positive_scalar_factor_is_a_change_of_scale() -> None:
    assert "sum" not in scaled(0.5).activations
    assert "last" in scaled(0.5).activations


def test_a_negative_scalar_factor_is_not() -> None:
    assert "sum" in scaled(-0.5).activations


def z_pool(mean: onnx.NodeProto, **constants: np.ndarray) -> Placement:  # type: ignore[type-arg]
    return place_quantizers(
        model_of(
            [
                node("Conv", "input w0", "stem"),
                node("ReduceMax", "stem", "max", axes=[1], keepdims=1),
                mean,
                node("Concat", "max mean", "last", axis=1),
                node("Conv", "last w2", "logits"),
            ],
            {"w0": weight(4), "w2": weight(2, 2), **constants},
        )
    )


@pytest.mark.parametrize("as_convolution", [False, True])
def test_maxima_and_means_that_are_joined_share_the_map_s_range(as_convolution: bool) -> None:
    if as_convolution:
        place = z_pool(node("Conv", "stem wm", "mean"), wm=weight(1) / 4)
    else:
        place = z_pool(node("ReduceMean", "stem", "mean", axes=[1], keepdims=1))
    assert {place.same_range[name] for name in ("max", "mean", "last")} == {"stem"}


def test_a_convolution_that_is_no_mean_keeps_its_own_range() -> None:
    place = z_pool(node("Conv", "stem wm", "mean"), wm=weight(1))
    assert "mean" in place.activations
    assert "last" in place.activations


def test_the_convolution_s_branch_of_a_residual_sum_is_marked() -> None:
    model = model_of(
        [
            node("Conv", "input w0", "stem"),
            node("Conv", "stem w1", "branch"),
            node("Add", "stem branch", "last"),
            LAST,
        ],
        {"w0": weight(4), "w1": weight(4), "wl": weight(2)},
    )
    assert place_quantizers(model).addends == {"branch"}


def test_a_sampling_grid_stays_float_from_the_offsets_on() -> None:
    model = model_of(
        [
            node("Conv", "input w", "offsets"),
            node("Transpose", "offsets", "moved", perm=[0, 2, 3, 1]),
            node("Add", "moved base", "grid"),
            node("GridSample", "input grid", "sampled"),
            node("Conv", "sampled w", "logits"),
        ],
        {"w": np.ones((2, 2, 1, 1), np.float32), "base": np.zeros((1, 6, 6, 2), np.float32)},
        channels=2,
    )
    placed = place_quantizers(model)
    chosen = {*placed.activations, *placed.same_range}
    assert {"input", "offsets", "sampled"} <= chosen
    assert "grid" not in chosen


def test_masked_scores_stay_float_up_to_their_softmax() -> None:
    mask = np.where(np.eye(6, dtype=bool), -1e4, 0).astype(np.float32)
    for constant, quantized in ((mask, False), (np.zeros_like(mask) + 1, True)):
        model = model_of(
            [
                node("MatMul", "input input", "scores"),
                node("Add", "scores mask", "masked"),
                node("Softmax", "masked", "weights"),
                node("MatMul", "weights input", "logits"),
            ],
            {"mask": constant},
        )
        placed = place_quantizers(model)
        assert {"scores", "weights"} <= {*placed.activations, *placed.same_range}
        assert ("masked" in placed.activations) == quantized


@pytest.mark.parametrize("divided", [True, False])
def test_squares_that_are_summed_to_a_divisor_stay_float(divided: bool) -> None:
    """Where all of them are rounded to 0, a quotient has no bound."""
    model = model_of(
        [
            node("Conv", "input weight", "map"),
            node("Mul", "map map", "squares"),
            node("ReduceSum", "squares axes", "sum"),
            node("Add", "sum tiny", "positive"),
            node("Sqrt", "positive", "length"),
            node("Div", "map length", "logits") if divided else node("Conv", "length head", "logits"),
        ],
        {
            "weight": weight(4),
            "head": weight(2, 1),
            "axes": np.asarray([1]),
            "tiny": np.float32(1e-12),
        },
    )
    placed = place_quantizers(model)
    chosen = {*placed.activations, *placed.same_range}
    assert "map" in chosen
    assert ("squares" in chosen) != divided


def test_many_ways_to_a_divisor_are_looked_at_once() -> None:
    """A chain of joins has two to the power of its length of them."""
    joins = [node("Max", f"m{i} m{i}", f"m{i + 1}") for i in range(200)]
    model = model_of([node("Relu", "input", "m0"), *joins, node("Div", "input m200", "logits")], {})
    assert "logits" not in place_quantizers(model).activations


def test_scores_that_a_mask_makes_infinite_are_planned_around() -> None:
    """As CCNet keeps a place from being counted twice."""
    model = model_of(
        [
            node("MatMul", "input input", "scores"),
            node("Where", "mask endless scores", "masked"),
            node("Softmax", "masked", "weights"),
            node("MatMul", "weights input", "logits"),
        ],
        {"mask": np.eye(6, dtype=bool), "endless": np.float32(-np.inf)},
    )
    placed = place_quantizers(model)
    assert {"scores", "weights"} <= {*placed.activations, *placed.same_range}
    assert "masked" not in placed.activations
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    images = [np.random.default_rng(seed).standard_normal(shape).astype(np.float32) for seed in range(2)]
    plan = with_extents(QuantPlan(method="ptq", activations={}, weights={}), Graph(model), images)
    assert plan.extents["masked"] > 65504
    assert 0 < plan.extents["weights"] <= 1


def test_a_clip_without_an_end_makes_nothing_infinite() -> None:
    model = model_of(
        [node("Clip", "input zero endless", "clipped"), node("MatMul", "clipped input", "logits")],
        {"zero": np.float32(0), "endless": np.float32(np.inf)},
    )
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    images = [np.random.default_rng(0).standard_normal(shape).astype(np.float32)]
    plan = with_extents(QuantPlan(method="ptq", activations={}, weights={}), Graph(model), images)
    assert plan.extents["clipped"] < 10


def test_scores_of_a_gates_softmax_stay_float_under_the_float_policy() -> None:
    """Squared distances span hundreds: one step of their 8 bits is a factor of two behind the softmax."""
    from edgeattn.attention import create_attention
    from edgeattn.export.float_onnx import export_float
    from edgeattn.models import to_edge_form
    from edgeattn.models.example import InBlock

    network = InBlock(create_attention("enc", 8, codewords=4), torch.nn.Conv2d(8, 8, 1)).eval()
    model = export_float(to_edge_form(network, 6, 6, materialize=True), (1, 8, 6, 6)).model
    scores = {"attention/products/conv2d/0", "attention/squares/conv2d/0", "attention/add/0"}
    whole = place_quantizers(model, [GateRegion("attention", "int8")])
    assert scores <= set(whole.activations)
    # Torch has no tensor between a batch norm's product and sum.
    assert "attention/bn/batch_norm/0.scaled" not in whole.activations
    part = place_quantizers(model, [GateRegion("attention", "float")])
    assert not scores & set(part.activations)
    assert {"input", "attention/mul/2"} <= set(part.activations)


@pytest.mark.parametrize("last", ["Softmax", "Sigmoid"])
def test_scores_that_only_become_the_answer_stay_float(last: str) -> None:
    model = model_of(
        [node("Conv", "input w", "c"), node("GlobalAveragePool", "c", "p"), node(last, "p", "logits")],
        {"w": weight(4)},
    )
    assert place_quantizers(model).activations == ("input", "c")


def test_a_convolution_in_front_of_the_answer_stays_an_integer_one() -> None:
    """ONNX Runtime has no quantized convolution that gives float."""
    model = model_of([node("Conv", "input w", "c"), node("Sigmoid", "c", "logits")], {"w": weight(4)})
    assert place_quantizers(model).activations == ("input", "c")


def test_scores_that_others_read_as_well_are_quantized() -> None:
    model = model_of(
        [
            node("Conv", "input w", "c"),
            node("Sigmoid", "c", "s"),
            node("Mul", "c s", "m"),
            node("Sigmoid", "m", "logits"),
        ],
        {"w": weight(4)},
    )
    assert place_quantizers(model).activations == ("input", "c", "s")
