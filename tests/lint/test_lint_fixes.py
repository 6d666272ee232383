"""`--fix` keeps a network's numbers, whatever is wrong with it at the same time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from lint_models import Nodes
from onnx import TensorProto, helper, numpy_helper

from edgeattn.lint import fix_graph, lint_graph
from edgeattn.onnx_graph import Graph

SIZE = 16
STEP = 2.0**-4
"""Scales are powers of two, and weights integers: sums are exact in float32, whatever their order."""


class Network(Nodes):
    """Random 4-channel layers, each with something that a rule finds."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.kind = self.random.choice([np.int8, np.uint8])

    def pair(self, x: str, scale: float = STEP, zero: int | None = None, kind: type | None = None) -> str:
        kind = kind or self.kind
        offset = (128 if kind is np.uint8 else 0) if zero is None else zero
        parameters = self.const(np.float32(scale)), self.const(kind(offset))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, *parameters), *parameters)

    def conv(self, x: str, kernel: int = 1, **attributes: Any) -> str:
        kind = self.random.choice([np.int8, np.uint8])
        shift = 128 if kind is np.uint8 else 0
        integers = self.numbers.integers(-3, 4, (4, 4, kernel, kernel)) + shift
        parameters = self.const(np.float32(2.0**-2)), self.const(kind(shift))
        weight = self.add("DequantizeLinear", self.const(integers.astype(kind)), *parameters)
        return self.add("Conv", x, weight, kernel_shape=[kernel, kernel], **attributes)

    def padded(self, x: str) -> str:
        amounts = self.const(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        return self.conv(self.pair(self.add("Pad", x, amounts)), 3)

    def clipped(self, x: str) -> str:
        low, high = self.const(np.float32(0)), self.const(np.float32(255 * STEP))
        return self.pair(self.add("Clip", self.conv(self.pair(x)), low, high), zero=0, kind=np.uint8)

    def shifted(self, x: str) -> str:
        # Not a power of two, and not on its own grid: the fix keeps the rounded value.
        return self.add("Add", x, self.pair(self.const(np.float32(1.03)), 0.07))

    def gated_twice(self, x: str) -> str:
        gate = self.add("Sigmoid", self.conv(self.pair(x)))
        return self.add("Add", self.add("Mul", x, gate), self.add("Mul", self.add("Relu", x), gate))

    def averaged(self, x: str) -> str:
        return self.add("Mul", x, self.pair(self.add("GlobalAveragePool", self.pair(x))))

    def model(self) -> onnx.ModelProto:
        layers: list[Callable[[str], str]] = [
            self.padded,
            self.clipped,
            self.shifted,
            self.gated_twice,
            self.averaged,
        ]
        x = given = self.pair("x")
        for layer in self.random.choices(layers, k=5):
            # What was given is added again and again, so that numbers stay different from each other.
            x = self.pair(self.add("Add", layer(x), given))
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [x], ["result"], name="result")],
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, SIZE, SIZE))],
            [helper.make_tensor_value_info("result", TensorProto.FLOAT, (1, 4, SIZE, SIZE))],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    # As written: what the runtime fuses rounds as it likes.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("target", ["dla", "openvino", "ort", "tensorrt"])
def test_the_fixes_of_several_rules_together_keep_every_bit(target: str) -> None:
    several = 0
    for seed in range(12):
        model = Network(seed).model()
        graph = Graph(model)
        foretold = {(item.rule, item.node) for item in lint_graph(graph, target) if item.fixable}
        fixed = fix_graph(graph, target)
        left = lint_graph(graph, target)
        assert not foretold & {(item.rule, item.node) for item in left}
        assert not [item for item in left if item.fixable], "a second --fix would find something to do"
        several += len(fixed) > 1
        x = np.random.default_rng(seed).normal(size=(1, 4, SIZE, SIZE)).astype(np.float32) * 3
        wanted, got = run(model, x), run(graph.to_model(), x)
        assert np.ptp(wanted) > STEP, "a network without numbers proves nothing"
        if {"TRT003", "TRT005"} & set(fixed):
            # Two float16 values that fall on the two sides of a rounding edge are one step apart.
            assert np.mean(np.abs(got - wanted) > STEP) < 0.05, (seed, fixed)
        else:
            np.testing.assert_array_equal(got, wanted, err_msg=f"seed {seed}, {fixed}")
    assert several > 6


@pytest.mark.parametrize("seen_by", ["output", "operation"])
@pytest.mark.parametrize(("target", "kind"), [("tensorrt", np.uint8), ("ort", np.int8)])
def test_integers_that_something_else_sees_are_not_moved(target: str, kind: type, seen_by: str) -> None:
    """Their values are part of what the model means to others."""
    zero = kind(128 if kind is np.uint8 else 0)
    named = TensorProto.UINT8 if kind is np.uint8 else TensorProto.INT8
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="q")]
    outputs = [helper.make_tensor_value_info("q", named, (1, 4))]
    if seen_by == "operation":
        nodes += [
            helper.make_node("Cast", ["q"], ["f"], name="f", to=TensorProto.FLOAT),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="d"),
        ]
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4)) for name in ("f", "d")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4))]
    constants = [numpy_helper.from_array(np.float32(0.5), "scale"), numpy_helper.from_array(zero, "zero")]
    graph = helper.make_graph(nodes, "integers", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checked = Graph(model)
    found = [item for item in lint_graph(checked, target) if item.rule in ("TRT001", "ORT001")]
    assert [item.fixable for item in found] == [False]
    assert not {"TRT001", "ORT001"} & set(fix_graph(checked, target))
