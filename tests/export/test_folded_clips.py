"""Profile s8 folds zero points also where a clip is left in front of the range."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeattn.export.qdq import emit_qdq
from edgeattn.onnx_plain import open_plain
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.plan import PROFILES, Profile
from edgeattn.quant.ptq import make_plan

IMAGES = [np.random.default_rng(seed).standard_normal((1, 3, 8, 8)).astype(np.float32) for seed in range(12)]


def clipped(low: float, high: float) -> onnx.ModelProto:
    """Two convolutions with a clip between them that is no rectifier."""
    rng = np.random.default_rng(1)
    values = {
        "w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32) * 0.5,
        "b": rng.standard_normal(8).astype(np.float32),
        "low": np.float32(low),
        "high": np.float32(high),
        "v": rng.standard_normal((10, 8, 1, 1)).astype(np.float32),
        "c": rng.standard_normal(10).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["x"], kernel_shape=[3, 3]),
        helper.make_node("Clip", ["x", "low", "high"], ["clipped"]),
        helper.make_node("Conv", ["clipped", "v", "c"], ["y"], kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["y"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "clipped",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 10))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.5, 4.0), (-0.7, 0.9), (0.0, 1.0), (-3.0, 3.0)])
def test_both_profiles_keep_a_clip_between_layers(low: float, high: float, profile: Profile) -> None:
    model = clipped(low, high)
    config = PtqConfig(range_estimator="minmax", equalization=False, stop_at_sqnr_db=-1000.0)
    plan = make_plan(model, IMAGES, config)
    floats, quantized = open_plain(model, "a test"), open_plain(emit_qdq(model, plan, profile), "a test")
    for image in IMAGES:
        wanted, got = (session.run(None, {"image": image})[0] for session in (floats, quantized))
        assert np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()


def test_the_clip_in_front_of_a_folded_range_is_shifted_as_its_values() -> None:
    plan = make_plan(
        clipped(0.5, 4.0),
        IMAGES[:8],
        PtqConfig(range_estimator="minmax", equalization=False, stop_at_sqnr_db=-1000.0),
    )
    assert plan.activations["clipped"].folds_zero_point
    shifted = emit_qdq(clipped(0.5, 4.0), plan, "s8")
    (clip,) = (node for node in shifted.graph.node if node.op_type == "Clip")
    bounds = {
        item.name: float(numpy_helper.to_array(item))
        for item in shifted.graph.initializer
        if item.name in clip.input
    }
    scale = plan.activations["clipped"].params("s8").scale
    assert bounds[clip.input[1]] == pytest.approx(0.5 - 128 * scale)
    assert bounds[clip.input[2]] == pytest.approx(4.0 - 128 * scale)
