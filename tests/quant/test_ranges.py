"""Ranges and scales of plans: biases fit their accumulators, whatever calibration saw."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeattn.export.qdq import emit_qdq
from edgeattn.lower import lower_model
from edgeattn.onnx_plain import open_plain
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.plan import PROFILES, Profile
from edgeattn.quant.ptq import make_plan

IMAGES = [np.random.default_rng(seed).standard_normal((1, 4, 6, 6)).astype(np.float32) for seed in range(16)]


def gated(*, dead_squeeze: bool, dead_channel: bool) -> onnx.ModelProto:
    """A convolution and a gate, whose squeezed channels never fire, or with an output channel without weights."""
    rng = np.random.default_rng(0)
    values = {
        "w": rng.standard_normal((8, 4, 3, 3)).astype(np.float32) * 0.3,
        "b": rng.standard_normal(8).astype(np.float32),
        "squeeze": rng.standard_normal((4, 8, 1, 1)).astype(np.float32) * 0.01,
        "squeeze.bias": np.full(4, -9.0 if dead_squeeze else 1.0, np.float32),
        "excite": rng.standard_normal((8, 4, 1, 1)).astype(np.float32),
        "excite.bias": np.linspace(-1, 1, 8, dtype=np.float32),
        "head": rng.standard_normal((10, 8)).astype(np.float32),
        "head.bias": rng.standard_normal(10).astype(np.float32),
    }
    if dead_channel:
        values["w"][3] = 0.0
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["map"], kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Conv", ["pooled", "squeeze", "squeeze.bias"], ["squeezed"]),
        helper.make_node("Relu", ["squeezed"], ["fired"]),
        helper.make_node("Conv", ["fired", "excite", "excite.bias"], ["excited"]),
        helper.make_node("Sigmoid", ["excited"], ["gate"]),
        helper.make_node("Mul", ["map", "gate"], ["gated"]),
        helper.make_node("GlobalAveragePool", ["gated"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head", "head.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "gated",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 4, 6, 6))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 10))],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("dead_squeeze", "dead_channel"),
    [(True, False), (False, True), (False, False)],
    ids=["squeeze", "channel", "none"],
)
def test_onnx_runtime_s_kernels_add_whole_biases(
    dead_squeeze: bool, dead_channel: bool, profile: Profile
) -> None:
    model = gated(dead_squeeze=dead_squeeze, dead_channel=dead_channel)
    config = PtqConfig(range_estimator="minmax", equalization=False, stop_at_sqnr_db=-1000.0)
    quantized = emit_qdq(model, make_plan(model, IMAGES[:8], config), profile)
    lowered, _ = lower_model(quantized, "ort-cpu")
    kernels = onnxruntime.InferenceSession(lowered.SerializeToString(), providers=["CPUExecutionProvider"])
    floats, plain = open_plain(model, "a test"), open_plain(quantized, "a test")
    for image in IMAGES[8:]:
        wanted, expected, got = (
            session.run(None, {"image": image})[0] for session in (floats, plain, kernels)
        )
        np.testing.assert_allclose(got, expected, atol=0.02 * np.abs(expected).max())
        np.testing.assert_allclose(expected, wanted, atol=0.2 * np.abs(wanted).max())
