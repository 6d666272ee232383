"""Operations of attention in the torch interpreter give what ONNX Runtime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeattn.export.canonical import canonicalize
from edgeattn.onnx_graph import Graph
from edgeattn.quant.torch_graph import OPERATIONS, TorchGraph

SHAPE = (2, 3, 5, 4)


def model_of(nodes: list[Any], constants: dict[str, Any]) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model


def resize(mode: str, place: str) -> tuple[list[Any], dict[str, Any]]:
    options = {"nearest_mode": "floor"} if mode == "nearest" else {}
    node = helper.make_node(
        "Resize", ["x", "", "", "sizes"], ["y"], mode=mode, coordinate_transformation_mode=place, **options
    )
    return [node], {"sizes": np.array([2, 3, 7, 9], np.int64)}


GRID = np.random.default_rng(1).uniform(-1.2, 1.2, (2, 6, 3, 2)).astype(np.float32)
CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "nearest": resize("nearest", "asymmetric"),
    "linear": resize("linear", "half_pixel"),
    "grid": ([helper.make_node("GridSample", ["x", "grid"], ["y"], mode="bilinear")], {"grid": GRID}),
    "sum": ([helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)], {"axes": np.array([1, 3])}),
    "unsqueeze": ([helper.make_node("Unsqueeze", ["x", "axes"], ["y"])], {"axes": np.array([0, -1])}),
    "root": (
        [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Sqrt", ["a"], ["y"])],
        {},
    ),
    "power": ([helper.make_node("Pow", ["x", "two"], ["y"])], {"two": np.float32(2.0)}),
    "exponential": ([helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Exp", ["n"], ["y"])], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_operation_equals_onnx_runtime_and_has_a_gradient(name: str) -> None:
    nodes, constants = CASES[name]
    model = model_of(nodes, constants)
    assert all(node.op_type in OPERATIONS for node in nodes)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    value = torch.from_numpy(x).requires_grad_()
    got = TorchGraph(Graph(model))(value)
    assert np.abs(got.detach().numpy() - expected).max() < 1e-5
    got.sum().backward()
    assert value.grad is not None


def test_shapes_become_constants() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "two", "four"], ["map"]),
        helper.make_node("Mul", ["map", "three"], ["larger"]),
        helper.make_node("Slice", ["shape", "zero", "two"], ["first"]),
        helper.make_node("Concat", ["first", "larger"], ["sizes"], axis=0),
        helper.make_node(
            "Resize",
            ["x", "", "", "sizes"],
            ["y"],
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        ),
    ]
    numbers = {"zero": [0], "two": [2], "four": [4], "three": [3]}
    graph = Graph(model_of(nodes, {name: np.array(value, np.int64) for name, value in numbers.items()}))
    canonicalize(graph)
    assert [node.op_type for node in graph.nodes] == ["Resize"]
    assert graph.constants[graph.nodes[0].input[3]].tolist() == [2, 3, 15, 12]
