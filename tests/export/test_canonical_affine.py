"""Sums and products with constants fold into the layers around them, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeattn.export.canonical_affine import fold_affine
from edgeattn.onnx_graph import Graph

Array = NDArray[Any]


def network(nodes: list[NodeProto], constants: dict[str, Array], output: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 8, 8))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def outputs_of(model: onnx.ModelProto) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.random.default_rng(3).standard_normal((1, 4, 8, 8)).astype(np.float32)}
    result: Array = session.run(None, feeds)[0]
    return result


def folded(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    graph = Graph(model)
    fold_affine(graph)
    return graph.to_model(), [node.op_type for node in graph.nodes]


def conv(source: str, name: str, constants: dict[str, Array], seed: int, **attributes: Any) -> NodeProto:
    rng, group = np.random.default_rng(seed), attributes.get("group", 1)
    constants[f"{name}.w"] = rng.standard_normal((4, 4 // group, 3, 3)).astype(np.float32)
    constants[f"{name}.b"] = rng.standard_normal(4).astype(np.float32)
    return helper.make_node("Conv", [source, f"{name}.w", f"{name}.b"], [name], **attributes)


@given(
    seed=st.integers(0, 1000),
    kinds=st.lists(st.sampled_from(["Add", "Sub", "Mul", "Div", "from"]), min_size=1, max_size=4),
    shape=st.sampled_from([(1,), (), (4, 1, 1), (1, 4, 1, 1)]),
    group=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=40, deadline=None)
def test_what_follows_a_convolution_folds_into_it(
    seed: int, kinds: list[str], shape: tuple[int, ...], group: int
) -> None:
    rng, constants = np.random.default_rng(seed), dict[str, Array]()
    nodes = [conv("x", "first", constants, seed, group=group, pads=[1, 1, 1, 1])]
    for index, kind in enumerate(kinds):
        constants[f"c{index}"] = rng.uniform(0.5, 2.0, shape).astype(np.float32)
        given = [nodes[-1].output[0], f"c{index}"]
        op = "Sub" if kind == "from" else kind  # a constant minus the map
        nodes.append(helper.make_node(op, given[::-1] if kind == "from" else given, [f"t{index}"]))
    model = network(nodes, constants, nodes[-1].output[0])
    lowered, kept = folded(model)
    assert kept == ["Conv"]
    expected = outputs_of(model)
    np.testing.assert_allclose(outputs_of(lowered), expected, atol=1e-4 * np.abs(expected).max())


def before_convolution(
    kind: str, pads: int, shape: tuple[int, ...] = (4, 1, 1), group: int = 2
) -> onnx.ModelProto:
    constants: dict[str, Array] = {"c": np.linspace(0.5, 2.0, 4).astype(np.float32).reshape(shape)}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node(kind, ["r", "c"], ["t"]),
        conv("t", "last", constants, 1, group=group, pads=[pads] * 4),
    ]
    return network(nodes, constants, "last")


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize(("kind", "pads"), [("Mul", 0), ("Mul", 1), ("Div", 1), ("Add", 0), ("Sub", 0)])
def test_what_comes_before_a_convolution_folds_into_it(kind: str, pads: int, group: int) -> None:
    model = before_convolution(kind, pads, group=group)
    lowered, kept = folded(model)
    assert kept == ["Relu", "Conv"]
    np.testing.assert_allclose(outputs_of(lowered), outputs_of(model), rtol=1e-4, atol=1e-4)


def test_a_sum_before_a_padded_convolution_stays() -> None:
    model = before_convolution("Add", 1)
    assert folded(model)[1] == ["Relu", "Add", "Conv"]


def test_what_a_model_does_to_its_image_stays_as_it_says_what_images_it_wants() -> None:
    constants: dict[str, Array] = {"c": np.float32([255.0]), "d": np.float32([0.2])}
    nodes = [
        helper.make_node("Div", ["x", "c"], ["s"]),
        helper.make_node("Mul", ["s", "d"], ["t"]),
        conv("t", "last", constants, 1),
    ]
    assert folded(network(nodes, constants, "last"))[1] == ["Div", "Mul", "Conv"]


@pytest.mark.parametrize(
    "value",
    [np.ones((1, 1, 1, 8), np.float32), np.ones((1, 1, 8, 8), np.float32), np.ones((2, 4, 1, 1), np.float32)],
    ids=["by column", "by place", "a larger batch"],
)
def test_constants_that_differ_by_place_stay(value: Array) -> None:
    constants: dict[str, Array] = {"c": value}
    nodes = [conv("x", "first", constants, 0, pads=[1] * 4), helper.make_node("Mul", ["first", "c"], ["t"])]
    assert folded(network(nodes, constants, "t"))[1] == ["Conv", "Mul"]


@pytest.mark.parametrize("value", [0.0, 1e-20, 1e20, np.inf])
def test_factors_that_would_ruin_weights_stay(value: float) -> None:
    constants: dict[str, Array] = {"c": np.float32([value])}
    nodes = [conv("x", "first", constants, 0, pads=[1] * 4), helper.make_node("Mul", ["first", "c"], ["t"])]
    assert folded(network(nodes, constants, "t"))[1] == ["Conv", "Mul"]


def test_a_convolution_that_others_read_as_well_keeps_its_numbers() -> None:
    constants: dict[str, Array] = {"c": np.float32([2.0])}
    nodes = [
        conv("x", "first", constants, 0),
        helper.make_node("Mul", ["first", "c"], ["t"]),
        helper.make_node("Relu", ["first"], ["r"]),
        helper.make_node("Sub", ["t", "r"], ["d"]),
    ]
    assert folded(network(nodes, constants, "d"))[1] == ["Conv", "Mul", "Relu", "Sub"]


def test_layers_that_share_a_weight_get_their_own() -> None:
    constants: dict[str, Array] = {"c": np.float32([2.0])}
    first = conv("x", "first", constants, 0, pads=[1] * 4)
    second = helper.make_node("Conv", ["x", "first.w", "first.b"], ["second"], pads=[1] * 4)
    nodes = [
        first,
        second,
        helper.make_node("Mul", ["first", "c"], ["t"]),
        helper.make_node("Add", ["t", "second"], ["sum"]),
    ]
    model = network(nodes, constants, "sum")
    lowered, kept = folded(model)
    assert sorted(kept) == ["Add", "Conv", "Conv"]
    np.testing.assert_allclose(outputs_of(lowered), outputs_of(model), rtol=1e-4, atol=1e-4)


def test_a_linear_layer_takes_its_bias_in() -> None:
    rng = np.random.default_rng(0)
    constants: dict[str, Array] = {
        "w": rng.standard_normal((256, 5)).astype(np.float32),
        "c": rng.standard_normal(5).astype(np.float32),
    }
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"]),
        helper.make_node("Add", ["y", "c"], ["t"]),
    ]
    model = network(nodes, constants, "t")
    lowered, kept = folded(model)
    assert kept == ["Flatten", "Gemm"]
    np.testing.assert_allclose(outputs_of(lowered), outputs_of(model), rtol=1e-4, atol=1e-4)
