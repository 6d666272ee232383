"""Every operator between quantized tensors: each target's graph is valid, and its numbers are those of the plain one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lowering_graphs import Array, onnx_runtime_before, run, run_openvino
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from operator_cases import CASES, SHAPE, expected_of, model_of

from edgeattn.export.extents import attach_extents
from edgeattn.lower import lower_model

# Values of x reach 3.
STEP = 0.025


def quantized(
    name: str, floats: bool, dtype: type[np.integer[Any]], scale: float = 1.0
) -> tuple[ModelProto, float]:
    """Return Q/DQ, a Sigmoid in float if `floats`, the operator, Q/DQ, Flatten; and the step of the result."""
    nodes, constants, opset = CASES[name]
    result = expected_of(model_of(nodes, constants, opset), feeds(scale)["x"])
    step = float(np.abs(result).max()) / 100
    zero = 0 if dtype is np.int8 else 128
    source = "source.float" if floats else "source"
    inside = []
    for node in nodes:
        inner = NodeProto()
        inner.CopyFrom(node)
        inner.input[:] = [source if item == "x" else item for item in node.input]
        inner.output[:] = ["result" if item == "y" else item for item in node.output]
        inside.append(inner)
    pair = ["source.step", "zero"]
    before = [
        helper.make_node("QuantizeLinear", ["x", *pair], ["source.integers"]),
        helper.make_node("DequantizeLinear", ["source.integers", *pair], ["source"]),
    ]
    if floats:
        before.append(helper.make_node("Sigmoid", ["source"], [source]))
    pair[0] = "result.step"
    behind = [
        helper.make_node("QuantizeLinear", ["result", *pair], ["result.integers"]),
        helper.make_node("DequantizeLinear", ["result.integers", *pair], ["dequantized"]),
        helper.make_node("Flatten", ["dequantized"], ["logits"]),
    ]
    values = {
        **constants,
        "source.step": np.float32(STEP * scale),
        "result.step": np.float32(step),
        "zero": dtype(zero),
    }
    flat = [result.shape[0] if result.ndim else 1, result.size // result.shape[0] if result.ndim else 1]
    graph = helper.make_graph(
        [*before, *inside, *behind],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, flat)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    attach_extents(model, {output: 1.0 for node in graph.node for output in node.output})
    return model, step


def feeds(scale: float = 1.0) -> dict[str, Array]:
    return {"x": np.float32(scale) * np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)}


def skip_what_onnx_runtime_lacks(name: str) -> None:
    if name == "Swish":
        pytest.skip("ONNX Runtime does not know Swish of opset 24")
    if name == "RMSNormalization" and onnx_runtime_before(1, 24):
        pytest.skip("ONNX Runtime before 1.24 does not know RMSNormalization")


# ONNX Runtime quantizes float weights itself where all else is quantized; no plan of ours leaves such weights in float.
FLOAT_WEIGHTS = ("Conv", "ConvTranspose")


def assert_near(got: Array, expected: Array, step: float, share: float = 0.1) -> None:
    """Sums in another order round a value to its neighbour, here and there; two roundings become one."""
    steps = np.abs(got - expected) / step
    assert steps.max() < 1.01
    assert (steps > 0.01).mean() < share


@pytest.mark.parametrize("floats", [False, True], ids=["steps", "floats"])
@pytest.mark.parametrize("name", CASES)
def test_cpu_targets_compute_what_the_plain_graph_says(name: str, floats: bool) -> None:
    skip_what_onnx_runtime_lacks(name)
    model, step = quantized(name, floats, np.uint8)
    expected = run(model, feeds())
    for target in ("ort-cpu", "openvino-cpu"):
        lowered, _ = lower_model(model, target)
        assert_near(run(lowered, feeds()), expected, step)
        if name not in FLOAT_WEIGHTS:
            assert_near(run(lowered, feeds(), optimized=True), expected, step, share=0.3)
    assert_near(run_openvino(lowered, feeds()), expected, step)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 30.0, 1e3])
@pytest.mark.parametrize("name", CASES)
def test_values_of_any_size_are_computed_alike(name: str, scale: float, dtype: type[np.integer[Any]]) -> None:
    """Kernels of integers work with factors of scales: some overflow, some round them away."""
    skip_what_onnx_runtime_lacks(name)
    model, step = quantized(name, False, dtype, scale)
    expected = run(model, feeds(scale))
    if not step or not np.isfinite(expected).all():
        pytest.skip("float32 has no answer for values of this size")
    for target in ("ort-cpu", "openvino-cpu"):
        lowered, _ = lower_model(model, target)
        assert_near(run(lowered, feeds(scale)), expected, step)
        if target == "ort-cpu" and name not in FLOAT_WEIGHTS:
            assert_near(run(lowered, feeds(scale), optimized=True), expected, step, share=0.5)
    assert_near(run_openvino(lowered, feeds(scale)), expected, step, share=0.5)


@pytest.mark.parametrize("floats", [False, True], ids=["steps", "floats"])
@pytest.mark.parametrize("name", CASES)
def test_signed_activations_stay_right_in_openvino(name: str, floats: bool) -> None:
    skip_what_onnx_runtime_lacks(name)
    model, step = quantized(name, floats, np.int8)
    got = run_openvino(lower_model(model, "openvino-cpu")[0], feeds())
    assert_near(got, run(model, feeds()), step)


@pytest.mark.parametrize("floats", [False, True], ids=["steps", "floats"])
@pytest.mark.parametrize("name", CASES)
def test_the_graph_for_tensorrt_is_valid(name: str, floats: bool) -> None:
    lower_model(quantized(name, floats, np.int8)[0], "tensorrt-rtx")  # checks what it made
