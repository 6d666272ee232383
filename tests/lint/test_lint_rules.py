"""Every rule with a bad example that it finds, a good one that it passes, and its fix where it has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from attention_networks import pictures, quantized
from lint_models import Nodes
from onnx import TensorProto, helper, numpy_helper

from edgeattn.errors import RecipeError
from edgeattn.lint import LINT_TARGETS, RULES, fix_graph, lint_graph, rules_for
from edgeattn.lower import lower_model
from edgeattn.onnx_graph import Graph

ZERO = np.int8(0)


class Net(Nodes):
    """Writes a small model node by node."""

    def pair(self, x: str, scale: Any = 0.05, zero: Any = ZERO, **attributes: Any) -> str:
        parameters = self.const(np.asarray(scale, np.float32)), self.const(zero)
        return self.add(
            "DequantizeLinear",
            self.add("QuantizeLinear", x, *parameters, **attributes),
            *parameters,
            **attributes,
        )

    def conv(
        self, x: str, shape: tuple[int, ...] = (4, 4, 1, 1), kind: type = np.int8, **attributes: Any
    ) -> str:
        integers = np.random.default_rng(0).integers(-100, 100, shape)
        shift = 128 if kind is np.uint8 else 0
        weight = self.add(
            "DequantizeLinear",
            self.const((integers + shift).astype(kind)),
            self.const(np.float32(0.01)),
            self.const(kind(shift)),
        )
        return self.add("Conv", x, weight, kernel_shape=list(shape[2:]), **attributes)

    def model(self, output: str, shape: tuple[Any, ...] = (1, 4, 8, 8)) -> onnx.ModelProto:
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [output], ["result"], name="result")],
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def activations(bad: bool, zero: Any, scale: Any = 0.05, **attributes: Any) -> onnx.ModelProto:
    net = Net()
    x = net.pair("x", scale, zero, **attributes) if bad else net.pair("x")
    return net.model(net.pair(net.conv(x)) if not bad else net.pair(net.conv(x), 0.05, np.ravel(zero)[0]))


def unsigned(bad: bool) -> onnx.ModelProto:
    return activations(bad, np.uint8(128))


def asymmetric(bad: bool) -> onnx.ModelProto:
    return activations(bad, np.int8(3))


def per_channel(bad: bool) -> onnx.ModelProto:
    return activations(bad, np.zeros(4, np.int8), np.full(4, 0.05), **({"axis": 1} if bad else {}))


def scalar(bad: bool) -> onnx.ModelProto:
    net = Net()
    three = net.const(np.float32(3.0))
    x = net.conv(net.pair("x"))
    return net.model(net.pair(net.add("Add", x, net.pair(three, 0.03) if bad else three)))


def signed(bad: bool) -> onnx.ModelProto:
    net = Net()
    zero = np.int8(0) if bad else np.uint8(128)
    return net.model(net.pair(net.conv(net.pair("x", 0.05, zero)), 0.05, zero))


def weights(bad: bool) -> onnx.ModelProto:
    net = Net()
    x = net.conv(net.pair("x", 0.05, np.uint8(128)), kind=np.uint8 if bad else np.int8)
    return net.model(net.pair(x, 0.05, np.uint8(128)))


def addends(bad: bool) -> onnx.ModelProto:
    net = Net()
    x = net.pair("x")
    branch = net.conv(x)
    return net.model(net.pair(net.add("Add", x, net.pair(branch) if bad else branch)))


def pad(bad: bool) -> onnx.ModelProto:
    net = Net()
    if bad:
        x = net.add("Pad", "x", net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)))
        return net.model(net.pair(net.conv(net.pair(x), (4, 4, 3, 3))))
    return net.model(net.pair(net.conv(net.pair("x"), (4, 4, 3, 3), pads=[1, 1, 1, 1])))


def clip(bad: bool) -> onnx.ModelProto:
    net = Net()
    x = net.conv(net.pair("x", 0.05, np.uint8(128)))
    if bad:
        x = net.add("Clip", x, net.const(np.float32(0)), net.const(np.float32(6)))
    return net.model(net.conv(net.pair(x, 6 / 255, np.uint8(0))))


def unquantized(bad: bool) -> onnx.ModelProto:
    net = Net()
    x = net.add("Relu", net.conv(net.pair("x")))
    return net.model(net.pair(net.conv(x if bad else net.pair(x, 0.02))))


def remainder(bad: bool) -> onnx.ModelProto:
    net = Net()
    x = net.conv(net.pair("x"))
    # Of a dequantized tensor: float32 unless cast.
    y = net.add("GlobalAveragePool", net.pair(x))
    gate = net.add("Sigmoid", y)
    model = net.model(net.pair(net.add("Mul", net.pair(x), gate)))
    return model if bad else lower_model(model, "tensorrt")[0]


def product(bad: bool) -> onnx.ModelProto:
    net = Net()
    pooled = net.pair(net.add("GlobalAveragePool", net.pair(net.conv(net.pair("x")))))
    flat = net.pair(net.add("Reshape", pooled, net.const(np.array([1, 4], np.int64))))
    parameters = net.const(np.float32(0.01)), net.const(np.int8(0))
    integers = net.const(np.arange(-10, 10).reshape(4, 5).astype(np.int8))
    weight = net.add("DequantizeLinear", integers, *parameters)
    if not bad:
        flat, weight = (net.add("Cast", name, to=TensorProto.FLOAT16) for name in (flat, weight))
    x = net.add("MatMul", flat, weight)
    return net.model(x if bad else net.add("Cast", x, to=TensorProto.FLOAT))


def conv1d(bad: bool) -> onnx.ModelProto:
    net = Net()
    if bad:
        return net.model(net.pair(net.conv(net.pair("x"), (4, 4, 3))), (1, 4, 64))
    return net.model(net.pair(net.conv(net.pair("x"), (4, 4, 1, 3))))


def transpose(bad: bool) -> onnx.ModelProto:
    net = Net()
    x = net.pair(net.conv(net.pair("x")))
    if bad:
        x = net.pair(net.add("Transpose", x, perm=[0, 1, 3, 2]))
    return net.model(net.pair(net.conv(x)))


def dynamic(bad: bool) -> onnx.ModelProto:
    net = Net()
    return net.model(net.pair(net.conv(net.pair("x"))), ("batch" if bad else 1, 4, 8, 8))


def shared(bad: bool) -> onnx.ModelProto:
    net = Net()
    gate = net.add("Sigmoid", net.conv(net.pair("x")))
    one = net.add("Mul", "x", gate)
    other = net.add("Mul", net.add("Relu", "x"), gate if bad else net.add("Tanh", "x"))
    return net.model(net.add("Add", one, other))


def swish(bad: bool) -> onnx.ModelProto:
    net = Net()
    x = net.conv(net.pair("x"), (4, 1, 3, 3), pads=[1, 1, 1, 1], group=4)
    x = net.pair(x) if bad else x
    return net.model(net.pair(net.add("Mul", x, net.add("Sigmoid", x))))


def dla(bad: bool) -> onnx.ModelProto:
    net = Net()
    x = net.conv(net.pair("x"))
    x = net.add("HardSwish", net.add("GlobalAveragePool", x)) if bad else net.add("Relu", x)
    return net.model(net.conv(x))


def concat(bad: bool) -> onnx.ModelProto:
    net = Net()
    x = net.conv(net.pair("x"))
    return net.model(net.add("Concat", x, x, axis=2 if bad else 1))


def softmax(bad: bool) -> onnx.ModelProto:
    net = Net()
    scores = net.pair(net.conv(net.pair("x", 0.05, np.uint8(128))), 0.001, np.uint8(128))
    share = 0.4 if bad else 1.0
    return net.model(net.pair(net.add("Softmax", scores, axis=1), share / 255, np.uint8(0)))


def resize(bad: bool) -> onnx.ModelProto:
    net = Net()
    sizes = net.const(np.array([1, 1, 2, 2], np.float32))
    larger = net.add(
        "Resize", net.pair(net.conv(net.pair("x"))), "", sizes, mode="linear" if bad else "nearest"
    )
    return net.model(net.pair(larger))


class Case(NamedTuple):
    target: str
    example: Callable[[bool], onnx.ModelProto]
    tolerance: float | None = None
    """Of the fix: None where there is none, 0 where not a bit may change."""


CASES = {
    "TRT001": Case("tensorrt", unsigned, 0.0),
    "TRT002": Case("tensorrt", asymmetric),
    "QNT001": Case("tensorrt", per_channel),
    "QNT002": Case("tensorrt", scalar, 1e-5),
    "ORT001": Case("ort", signed, 0.0),
    "ORT002": Case("ort", softmax, 0.0),
    "ORT003": Case("ort", resize, 0.0),
    "CPU001": Case("openvino", weights, 0.0),
    "QDQ001": Case("tensorrt", addends),
    "QDQ002": Case("tensorrt", pad, 0.0),
    "QDQ003": Case("ort", clip, 0.0),
    "QDQ004": Case("tensorrt", unquantized),
    "TRT003": Case("tensorrt", remainder, 0.051),
    "TRT005": Case("tensorrt", product, 1e-3),
    "OPS001": Case("tensorrt", conv1d),
    "OPS002": Case("tensorrt", transpose),
    "OPS003": Case("openvino", dynamic),
    "OPS004": Case("dla", shared, 0.0),
    "TRT004": Case("tensorrt", swish),
    "DLA001": Case("dla", dla, 1e-5),
    "DLA002": Case("dla", concat),
}


def run(model: onnx.ModelProto) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    shape = [dim if isinstance(dim, int) else 1 for dim in session.get_inputs()[0].shape]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def test_a_clip_whose_ends_the_model_computes_is_not_taken_for_one_without_ends() -> None:
    net = Net()
    end = net.add("GlobalAveragePool", net.add("GlobalMaxPool", "x"))
    end = net.add("Squeeze", net.add("ReduceMax", end, keepdims=0))
    model = net.model(net.pair(net.add("Clip", net.conv(net.pair("x")), "", end)))
    assert "QDQ003" not in {finding.rule for finding in lint_graph(Graph(model), "ort")}


def test_the_shape_of_a_tensor_of_fixed_size_is_no_dynamic_shape() -> None:
    net = Net()
    channels = net.add("Gather", net.add("Shape", net.add("Relu", "x")), net.const(np.int64(1)))
    model = net.model(net.add("Mul", "x", net.add("Cast", channels, to=1)))
    assert "OPS003" not in {finding.rule for finding in lint_graph(Graph(model), "openvino")}


def test_every_rule_has_its_examples_and_an_id_of_its_own() -> None:
    assert [rule.id for rule in RULES] == list(dict.fromkeys(rule.id for rule in RULES))
    assert {rule.id for rule in RULES} == set(CASES)
    for rule in RULES:
        assert rule.why.endswith(".")
        assert rule.targets <= set(LINT_TARGETS)
        assert CASES[rule.id].target in rule.targets
        assert (rule.fix is not None) == (CASES[rule.id].tolerance is not None)


@pytest.mark.parametrize("rule", list(CASES))
def test_a_rule_finds_its_bad_example_and_passes_the_good_one(rule: str) -> None:
    case = CASES[rule]
    found = [item for item in lint_graph(Graph(case.example(True)), case.target) if item.rule == rule]
    assert found
    assert all(item.node and item.value for item in found)
    assert rule not in {item.rule for item in lint_graph(Graph(case.example(False)), case.target)}


@pytest.mark.parametrize("rule", [name for name, case in CASES.items() if case.tolerance is not None])
def test_a_fix_keeps_the_numbers_and_leaves_nothing_to_find(rule: str) -> None:
    case = CASES[rule]
    model = case.example(True)
    graph = Graph(model)
    assert rule in fix_graph(graph, case.target)
    assert rule not in {item.rule for item in lint_graph(graph, case.target)}
    fixed = graph.to_model()
    onnx.checker.check_model(fixed, full_check=True)
    np.testing.assert_allclose(run(fixed), run(model), rtol=0, atol=case.tolerance)


def test_pads_with_other_values_are_not_merged() -> None:
    net = Net()
    amounts, seven = net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)), net.const(np.float32(7))
    x = net.add("Pad", "x", amounts, seven)
    graph = Graph(net.model(net.pair(net.conv(net.pair(x), (4, 4, 3, 3)))))
    assert "QDQ002" not in fix_graph(graph, "tensorrt")
    assert "QDQ002" in {item.rule for item in lint_graph(graph, "tensorrt")}


def test_unsigned_activations_that_have_no_signed_spelling_are_not_fixed() -> None:
    graph = Graph(activations(True, np.uint8(0)))
    found = [item for item in lint_graph(graph, "tensorrt") if item.rule == "TRT001"]
    assert found
    assert not any(item.fixable for item in found), "nothing is promised that --fix does not do"
    assert fix_graph(graph, "tensorrt") == []


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="tensorrt"):
        rules_for("tensorrt-rt")


def test_the_images_of_these_tests_are_lively() -> None:
    model = quantized("eca")
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.ptp(session.run(None, {"input": pictures(1)[0]})[0]) > 0.05
