"""The torch interpreter computes what ONNX Runtime computes, float and quantized."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from quant_networks import Builder, inverted_residual, pictures, run
from test_torch_graph_operations import CASES as OTHER_CASES

from edgeattn.export.qdq import emit_qdq
from edgeattn.onnx_graph import Graph
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import Profile
from edgeattn.quant.ptq import make_plan
from edgeattn.quant.simulation import PlanMeter, batches_of, simulated
from edgeattn.quant.torch_graph import OPERATIONS, TorchGraph, quantizers_of

X = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
CASES: list[tuple[str, list[object], dict[str, object]]] = [
    ("Relu", [], {}),
    ("Sigmoid", [], {}),
    ("Tanh", [], {}),
    ("HardSwish", [], {}),
    ("HardSigmoid", [], {"alpha": 1 / 6, "beta": 0.5}),
    ("HardSigmoid", [], {}),
    ("LeakyRelu", [], {"alpha": 0.2}),
    ("LeakyRelu", [], {}),
    ("Softmax", [], {"axis": 1}),
    ("Clip", [-0.5, 0.25], {}),
    ("Clip", [-0.5], {}),
    ("Add", [0.5], {}),
    ("Sub", [0.5], {}),
    ("Mul", [0.5], {}),
    ("Div", [0.5], {}),
    ("AveragePool", [], {"kernel_shape": [1, 8]}),
    ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", [], {"kernel_shape": [3, 3], "ceil_mode": 1, "strides": [2, 2]}),
    ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1]}),
    ("MaxPool", [], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0], "strides": [2, 2]}),
    ("GlobalAveragePool", [], {}),
    ("GlobalMaxPool", [], {}),
    ("ReduceMean", [], {"axes": [2, 3], "keepdims": 0}),
    ("ReduceMean", [], {"axes": [1]}),
    ("ReduceMean", [], {}),
    ("ReduceMax", [], {"axes": [3]}),
    ("Flatten", [], {}),
    ("Flatten", [], {"axis": 2}),
    ("Reshape", [np.asarray([1, 24, -1])], {}),
    ("Reshape", [np.asarray([0, -1])], {}),
    ("Transpose", [], {"perm": [0, 2, 1, 3]}),
    ("Transpose", [], {}),
    ("Unsqueeze", [np.asarray([2])], {}),
    ("MatMul", [np.random.default_rng(1).normal(size=(8, 5))], {}),
    ("Conv", [np.random.default_rng(2).normal(size=(6, 1, 3, 3))], {"group": 3, "pads": [0, 1, 1, 2]}),
    ("Conv", [np.random.default_rng(2).normal(size=(2, 3, 3, 3))], {"dilations": [2, 2], "strides": [2, 1]}),
    ("Conv", [np.random.default_rng(2).normal(size=(2, 3, 3, 3))], {"auto_pad": "SAME_UPPER"}),
    ("Slice", [np.asarray([1]), np.asarray([3]), np.asarray([2])], {}),
    ("Slice", [np.asarray([-3]), np.asarray([2**31 - 1]), np.asarray([3]), np.asarray([1])], {}),
    ("Slice", [np.asarray([5]), np.asarray([0]), np.asarray([2]), np.asarray([-2])], {}),
    ("Slice", [np.asarray([0, 1]), np.asarray([1, 3])], {}),
    ("Exp", [], {}),
]


def single(op: str, constants: list[object], attributes: dict[str, object]) -> onnx.ModelProto:
    names = [f"c{index}" for index in range(len(constants))]
    arrays = [np.asarray(item) for item in constants]
    arrays = [item if item.dtype == np.int64 else item.astype(np.float32) for item in arrays]
    graph = helper.make_graph(
        [helper.make_node(op, ["input", *names], ["y"], **attributes)],
        "single",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in zip(names, arrays, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


@pytest.mark.parametrize(
    ("op", "constants", "attributes"), CASES, ids=lambda item: item if isinstance(item, str) else ""
)
def test_an_operation_computes_what_onnx_runtime_does(
    op: str, constants: list[object], attributes: dict[str, object]
) -> None:
    model = single(op, constants, attributes)
    got = TorchGraph(Graph(model))(torch.from_numpy(X)).numpy()
    (expected,) = run(model, X)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_every_written_operation_is_compared() -> None:
    elsewhere = {"Gemm", "Concat", "Squeeze", "Identity"}
    # Beside ONNX Runtime in test_torch_graph_operations.py, where more than one input is needed.
    elsewhere |= {node.op_type for nodes, _ in OTHER_CASES.values() for node in nodes}
    assert OPERATIONS.keys() <= {case[0] for case in CASES} | elsewhere


@pytest.mark.parametrize("profile", ["u8", "s8"])
def test_simulation_agrees_with_the_emitted_graph(profile: Profile) -> None:
    model, images = inverted_residual(5), pictures(12)
    plan = make_plan(model, images, PtqConfig(tuning_steps=3))
    network = simulated(Graph(model), plan, profile, place_quantizers(model).weights)
    emitted = emit_qdq(model, plan, profile)
    with torch.no_grad():
        got = np.concatenate(
            [network(torch.from_numpy(x), quantizers_of(plan, profile)).numpy() for x in images]
        )
    expected = np.concatenate([run(emitted, x)[0] for x in images])
    # Sums in another order may round one value to its neighbour, here and there.
    error = np.square(got - expected).sum() / np.square(expected).sum()
    assert error < 1e-4
    assert (got.argmax(1) == expected.argmax(1)).all()


def test_batches_are_used_only_where_the_graph_takes_them() -> None:
    images = pictures(5)
    assert [len(batch) for batch in batches_of(TorchGraph(Graph(inverted_residual())), images, 4)] == [4, 1]
    b = Builder()
    b.constants["shape"] = np.asarray([3, 64])
    x = b.node("Reshape", ["input", "shape"], "rows")
    b.constant("w", np.ones((64, 2)))
    graph = Graph(b.model(b.node("MatMul", [x, "w"], "logits"), (3, 2)))
    assert [len(batch) for batch in batches_of(TorchGraph(graph), images, 4)] == [1] * 5


def test_a_meter_finds_the_float_graph_perfect() -> None:
    model, images = inverted_residual(), pictures(4)
    place = place_quantizers(model)
    plan = make_plan(model, images, PtqConfig(tuning_steps=0)).model_copy(
        update={"activations": {}, "weights": {}, "channel_scales": {}}
    )
    step = PlanMeter(Graph(model), place, images).step("float", plan, 0.0)
    assert step.agreement_u8 == step.agreement_s8 == 1.0
    assert min(step.sqnr_db_u8, step.sqnr_db_s8) > 100
