"""What other exporters write becomes the spelling that the rest of the package knows; no number changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper, version_converter

from edgeattn.export.canonical import canonicalize
from edgeattn.export.canonical_spellings import name_outputs_directly
from edgeattn.onnx_graph import Graph, attribute

Array = NDArray[Any]


def model_of(
    nodes: list[NodeProto],
    constants: dict[str, Array],
    output: str,
    size: tuple[int, int] = (7, 10),
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, *size))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


def outputs_of(model: onnx.ModelProto) -> Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    result: Array = session.run(
        None, {"x": np.random.default_rng(3).standard_normal(shape).astype(np.float32)}
    )[0]
    return result


def canonical(model: onnx.ModelProto) -> Graph:
    graph = Graph(model)
    canonicalize(graph)
    return graph


@pytest.mark.parametrize("way", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("kind", ["Conv", "MaxPool", "AveragePool"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 1), (3, 1), (1, 3)])
def test_named_pads_are_written_out(way: str, kind: str, kernel: int, stride: int) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 4, kernel, kernel)).astype(np.float32)
    is_conv = kind == "Conv"
    node = helper.make_node(
        kind,
        ["x", "w"] if is_conv else ["x"],
        ["y"],
        auto_pad=way,
        strides=[stride, stride],
        # A convolution may leave it to its weight.
        **({} if is_conv else {"kernel_shape": [kernel, kernel]}),
    )
    model = model_of([node], {"w": weight} if is_conv else {}, "y")
    graph = canonical(model)
    (found,) = graph.nodes
    assert attribute(found, "auto_pad", "NOTSET") == "NOTSET"
    assert len(attribute(found, "pads")) == 4
    expected = outputs_of(model)
    got = outputs_of(graph.to_model())
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "kind", "options", "idle"),
    [
        ((1, 1), "GlobalAveragePool", {}, True),
        ((1, 1), "GlobalMaxPool", {}, True),
        ((1, 2), "GlobalAveragePool", {}, False),
        ((7, 10), "AveragePool", {"kernel_shape": [1, 1]}, True),
        ((7, 10), "MaxPool", {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0]}, True),
        ((7, 10), "AveragePool", {"kernel_shape": [1, 1], "strides": [2, 2]}, False),
        ((7, 10), "MaxPool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, False),
        (
            (1, 1),
            "AveragePool",
            {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
            False,
        ),
        ((1, 10), "ReduceMean", {"axes": [2]}, True),
        ((1, 10), "ReduceMean", {"axes": [2, 3]}, False),
        ((1, 10), "ReduceMean", {"axes": [2], "keepdims": 0}, False),
        ((7, 1), "ReduceMax", {"axes": [-1]}, True),
    ],
)
def test_pools_of_one_number_go(
    size: tuple[int, int], kind: str, options: dict[str, Any], idle: bool
) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node(kind, ["r"], ["p"], **options),
        helper.make_node("Neg", ["p"], ["n"]),
        helper.make_node("Neg", ["n"], ["y"]),
    ]
    model = model_of(nodes, {}, "y", size)
    graph = canonical(model)
    assert (kind not in {node.op_type for node in graph.nodes}) == idle
    np.testing.assert_array_equal(outputs_of(graph.to_model()), outputs_of(model))


def test_a_pool_of_one_number_that_is_the_answer_stays() -> None:
    model = model_of([helper.make_node("GlobalAveragePool", ["x"], ["y"])], {}, "y", (1, 1))
    assert [node.op_type for node in canonical(model).nodes] == ["GlobalAveragePool"]


def test_places_of_maxima_are_asked_for() -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p", "place"], kernel_shape=[1, 1]),
        helper.make_node("Cast", ["place"], ["y"], to=TensorProto.FLOAT),
    ]
    assert "MaxPool" in {node.op_type for node in canonical(model_of(nodes, {}, "y")).nodes}


def test_a_softmax_that_the_converter_took_apart_is_one_again() -> None:
    """As it does where the softmax's input has open sizes when it is converted."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["rows"], axis=3),
        helper.make_node("Softmax", ["rows"], ["p"], axis=-1),
        helper.make_node("Reshape", ["p", "shape"], ["y"]),
    ]
    model = model_of(nodes, {"shape": np.array([1, 4, 7, 10])}, "y")
    graph = canonical(model)
    assert [node.op_type for node in graph.nodes] == ["Softmax"]
    np.testing.assert_allclose(outputs_of(graph.to_model()), outputs_of(model), rtol=1e-5, atol=1e-6)


def test_a_softmax_over_several_axes_stays_apart() -> None:
    old = model_of([helper.make_node("Softmax", ["x"], ["y"], axis=2)], {}, "y", opset=11)
    graph = canonical(version_converter.convert_version(old, 17))
    assert "Flatten" in [node.op_type for node in graph.nodes]
    np.testing.assert_allclose(outputs_of(graph.to_model()), outputs_of(old), rtol=1e-5, atol=1e-6)


def test_an_output_that_is_only_renamed_is_written_directly() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Identity", ["r"], ["y"]),
        helper.make_node("Neg", ["r"], ["unused"]),
    ]
    model = model_of(nodes, {}, "y")
    graph = Graph(model)
    name_outputs_directly(graph)
    assert [(node.op_type, list(node.input), list(node.output)) for node in graph.nodes] == [
        ("Relu", ["x"], ["y"]),
        ("Neg", ["y"], ["unused"]),
    ]
    np.testing.assert_array_equal(outputs_of(graph.to_model()), outputs_of(model))


def test_an_input_that_is_an_output_keeps_its_identity() -> None:
    graph = Graph(model_of([helper.make_node("Identity", ["x"], ["y"])], {}, "y"))
    name_outputs_directly(graph)
    assert [node.op_type for node in graph.nodes] == ["Identity"]
