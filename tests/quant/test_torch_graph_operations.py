"""Operations of the torch interpreter give what ONNX Runtime gives."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from onnx import helper
from operator_cases import CASES, SHAPE, VARIANTS, Case, X, case, expected_of, model_of, whole

from edgeattn.errors import ModelError
from edgeattn.export.canonical import canonicalize
from edgeattn.onnx_graph import Graph
from edgeattn.quant import torch_graph
from edgeattn.quant.torch_graph import TorchGraph
from edgeattn.quant.torch_operations import OPERATIONS


@pytest.mark.parametrize("name", CASES)
def test_operation_equals_onnx_runtime_and_has_a_gradient(name: str) -> None:
    nodes, constants, opset = CASES[name]
    model = model_of(nodes, constants, opset)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    value = torch.from_numpy(x).requires_grad_()
    with mock.patch.object(torch_graph, "evaluate_node", side_effect=AssertionError("left to the evaluator")):
        got = TorchGraph(Graph(model))(value)
    expected = expected_of(model, x)
    assert got.shape == expected.shape
    assert np.abs(got.detach().numpy() - expected).max() < 1e-5
    got.sum().backward()
    assert value.grad is not None


@pytest.mark.parametrize(
    ("op", "constants", "attributes"), VARIANTS, ids=lambda item: item if isinstance(item, str) else ""
)
def test_a_variant_equals_onnx_runtime(op: str, constants: list[Any], attributes: dict[str, Any]) -> None:
    arrays = [np.asarray(item) for item in constants]
    arrays = [item if item.dtype == np.int64 else item.astype(np.float32) for item in arrays]
    model = model_of(*case(op, *arrays, **attributes), shape=X.shape)
    got = TorchGraph(Graph(model))(torch.from_numpy(X)).numpy()
    expected = expected_of(model, X)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_every_operation_has_a_case() -> None:
    assert {node.op_type for nodes, _, _ in CASES.values() for node in nodes} >= set(OPERATIONS)


@pytest.mark.parametrize(
    "parts",
    [
        case("Hardmax", axis=1),
        case("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
        case("Resize", None, None, whole(2, 4, 12, 8), mode="cubic"),
        case("MeanVarianceNormalization", axes=[1, 2]),
    ],
    ids=lambda parts: parts[0][0].op_type,
)
def test_what_is_not_written_out_is_still_computed(parts: Case) -> None:
    model = model_of(*parts)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    got = TorchGraph(Graph(model))(torch.from_numpy(x))
    assert np.abs(got.numpy() - expected_of(model, x)).max() < 1e-4


def test_an_operation_that_nobody_knows_is_named() -> None:
    node = helper.make_node("Wishful", ["x"], ["y"], name="the culprit")
    with pytest.raises(ModelError, match=r"the culprit.*Wishful"):
        TorchGraph(Graph(model_of([node], {})))(torch.zeros(SHAPE))


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
    assert graph.constants[graph.nodes[0].input[3]].tolist() == [2, 4, 18, 12]
