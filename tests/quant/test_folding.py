"""Profile s8 keeps all levels where biases can take the zero point, and computes the same integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper
from quant_networks import Builder, inverted_residual, pictures, run

from edgeattn.errors import ModelError
from edgeattn.export.qdq import emit_qdq
from edgeattn.onnx_graph import Graph, attribute
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.folding import can_fold_zero_point
from edgeattn.quant.plan import QuantPlan
from edgeattn.quant.ptq import make_plan

QUICK = PtqConfig(tuning_steps=0, headroom="none")


def test_only_tensors_between_unpadded_layers_with_biases_fold() -> None:
    graph = Graph(inverted_residual())
    foldable = {name for name in graph.producer if can_fold_zero_point(graph, name)}
    # expand_act goes into a padded convolution, stem_act into an add, last_act into a pool.
    assert foldable == {"depthwise_act"}


def test_a_padded_or_biasless_reader_refuses() -> None:
    b = Builder()
    x = b.relu6(b.conv("input", "first", 3, 4), "act")
    x = b.conv(x, "second", 4, 4, kernel=3, pad=0)
    graph = Graph(b.model(x, (1, 4, 6, 6)))
    assert can_fold_zero_point(graph, "act")
    del graph.producer["second"].input[2:]
    graph.reindex()
    assert not can_fold_zero_point(graph, "act")
    assert not can_fold_zero_point(graph, "input")
    assert not can_fold_zero_point(graph, "second")


@given(seed=st.integers(0, 1000))
@settings(max_examples=8)
def test_a_folded_tensor_has_the_integers_of_the_affine_grid_less_128(seed: int) -> None:
    model, images = inverted_residual(seed), pictures(8, seed + 1)
    plan = make_plan(model, images, QUICK)
    item = plan.activations["depthwise_act"]
    assert item.folds_zero_point
    plain = plan.model_copy(
        update={
            "activations": {
                **plan.activations,
                "depthwise_act": item.model_copy(update={"folds_zero_point": False}),
            }
        }
    )
    # Both graphs are the same up to the convolution's bias, so what it writes differs by the shift.
    folded = probe(emit_qdq(model, plan, "s8"), "depthwise_act.quantized", images[0])
    unclipped = graph_value(emit_qdq(model, plain, "s8"), images[0])
    expected = np.clip(np.rint(unclipped / np.float32(item.params("u8").scale)), 0, 255) - 128
    assert np.abs(folded.astype(int) - expected).max() <= 1
    assert (folded == expected).mean() > 0.99


def probe(model: ModelProto, tensor: str, image: np.ndarray) -> np.ndarray:
    copy = ModelProto()
    copy.CopyFrom(model)
    kind = TensorProto.INT8 if tensor.endswith(".quantized") else TensorProto.FLOAT
    copy.graph.output.append(helper.make_tensor_value_info(tensor, kind, None))
    result: np.ndarray = run(copy, image, tensor)[0]
    return result


def graph_value(model: ModelProto, image: np.ndarray) -> np.ndarray:
    """Return what the depthwise convolution writes, whatever its result is called."""
    node = next(n for n in Graph(model).nodes if n.op_type == "Conv" and attribute(n, "group", 1) > 1)
    return probe(model, node.output[0], image)


def test_every_zero_point_of_s8_is_zero_and_no_clip_is_left_before_a_folded_tensor() -> None:
    model = inverted_residual()
    plan = make_plan(model, pictures(8), QUICK)
    graph = Graph(emit_qdq(model, plan, "s8"))
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = graph.constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    assert graph.producer["depthwise_act"].op_type == "Conv"
    assert attribute(graph.producer["depthwise_act"], "group") == 16


def test_folding_brings_s8_nearer_to_the_float_network() -> None:
    model, images = inverted_residual(3), pictures(16)
    plan = make_plan(model, images, QUICK)
    plain = plan.model_copy(
        update={
            "activations": {
                name: item.model_copy(update={"folds_zero_point": False})
                for name, item in plan.activations.items()
            }
        }
    )

    def error(candidate: QuantPlan) -> float:
        quantized = emit_qdq(model, candidate, "s8")
        return sum(float(np.square(run(quantized, x)[0] - run(model, x)[0]).sum()) for x in images)

    assert error(plan) < error(plain)


def test_plans_that_cannot_be_folded_are_refused() -> None:
    model = inverted_residual()
    plan = make_plan(model, pictures(8), QUICK)

    def with_item(name: str, **update: object) -> QuantPlan:
        changed = plan.activations[name].model_copy(update={"folds_zero_point": True, **update})
        return plan.model_copy(update={"activations": {**plan.activations, name: changed}})

    # Behind an add there is no bias that could take it.
    with pytest.raises(ModelError, match="calibrate this one"):
        emit_qdq(model, with_item("stem_act"), "s8")


def test_a_range_wider_than_its_clip_leaves_the_clip_in_the_shifted_graph() -> None:
    model, images = inverted_residual(), pictures(8)
    plan = make_plan(model, images, QUICK)
    wider = plan.activations["depthwise_act"].model_copy(update={"folds_zero_point": True, "high": 9.0})
    quantized = emit_qdq(
        model, plan.model_copy(update={"activations": {**plan.activations, "depthwise_act": wider}}), "s8"
    )
    assert [node.op_type for node in quantized.graph.node].count("Clip") == 1
    for image in images:
        wanted = run(model, image)[0]
        assert np.abs(run(quantized, image)[0] - wanted).max() < 0.1 * np.abs(wanted).max()
