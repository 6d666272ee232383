"""The canonical spelling: what is folded computes the same as before."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeattn.export.canonical import canonicalize
from edgeattn.onnx_graph import Graph

RNG = np.random.default_rng(0)


def _model(nodes: list[Any], shape: tuple[int, ...], **constants: Any) -> ModelProto:
    values = {"w": RNG.standard_normal((4, 3, *(3,) * (len(shape) - 2))).astype(np.float32), **constants}
    graph = helper.make_graph(
        nodes,
        "pads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    return model


def _padded(
    amounts: list[int],
    *,
    shape: tuple[int, ...] = (1, 3, 8, 7),
    value: float = 0.0,
    axes: list[int] | None = None,
    mode: str = "constant",
    second: str | None = None,
    **options: Any,
) -> ModelProto:
    inputs = ["x", "pads", "value", *(["axes"] if axes else [])]
    nodes = [
        helper.make_node("Pad", inputs, ["p"], mode=mode),
        helper.make_node("Conv", ["p", "w"], ["c"], **options),
    ]
    if second == "Conv":
        nodes += [
            helper.make_node("Conv", ["p", "w"], ["d"], **options),
            helper.make_node("Add", ["c", "d"], ["y"]),
        ]
    elif second:
        nodes += [
            helper.make_node(second, ["p"], ["r"]),
            helper.make_node("ReduceSum", ["r"], ["s"], keepdims=1),
            helper.make_node("Add", ["c", "s"], ["y"]),
        ]
    else:
        nodes.append(helper.make_node("Relu", ["c"], ["y"]))
    constants: dict[str, Any] = {"pads": np.array(amounts, np.int64), "value": np.float32(value)}
    if axes:
        constants["axes"] = np.array(axes, np.int64)
    return _model(nodes, shape, **constants)


def _answer(model: ModelProto, x: Any) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("model", "folded"),
    [
        (_padded([0, 0, 0, 1, 0, 0, 1, 2], strides=[2, 2]), True),
        (_padded([0, 0, 2, 0, 0, 0, 0, 1], pads=[1, 1, 0, 0]), True),
        (_padded([1, 0, 2, 1], axes=[-1, 2]), True),
        (_padded([0, 0, 1, 1, 0, 0, 1, 1], second="Conv"), True),
        (_padded([0, 0, 1, 1, 0, 0, 1, 1], second="Relu"), False),
        (_padded([0, 0, 1, 1, 0, 0, 1, 1], value=0.5), False),
        (_padded([0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"), False),
        (_padded([0, 0, -1, 1, 0, 0, 1, 1]), False),
        (_padded([0, 0, 1, 1, 0, 0, 1, 1], auto_pad="SAME_UPPER"), True),
        (_padded([1, 2], axes=[-1], shape=(1, 3, 9)), False),
    ],
    ids=["stride", "both", "axes", "two", "read", "value", "mode", "negative", "auto", "line"],
)
def test_zero_pads_go_into_the_convolutions_behind_them(model: ModelProto, folded: bool) -> None:
    graph = Graph(model)
    canonicalize(graph)
    assert ("Pad" not in {node.op_type for node in graph.nodes}) == folded
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    x = RNG.standard_normal(shape).astype(np.float32)
    assert np.allclose(_answer(graph.to_model(), x), _answer(model, x), atol=1e-5)


def test_pads_that_an_exporter_computes_from_constants_are_folded() -> None:
    """As torch's TorchScript exporter writes F.pad: the amounts go through nine nodes."""
    nodes = [
        helper.make_node(
            "ConstantOfShape", ["four"], ["zeros"], value=helper.make_tensor("v", TensorProto.INT64, [1], [0])
        ),
        helper.make_node("Concat", ["reversed", "zeros"], ["all"], axis=0),
        helper.make_node("Reshape", ["all", "pairs"], ["table"]),
        helper.make_node("Slice", ["table", "last", "first", "zero", "back"], ["turned"]),
        helper.make_node("Transpose", ["turned"], ["t"], perm=[1, 0]),
        helper.make_node("Reshape", ["t", "flat"], ["pads"]),
        helper.make_node("Pad", ["x", "pads"], ["p"]),
        helper.make_node("Conv", ["p", "w"], ["y"]),
    ]
    constants = {
        "four": [4],
        "reversed": [0, 1, 0, 1],
        "pairs": [-1, 2],
        "last": [-1],
        "first": [-(2**62)],
        "zero": [0],
        "back": [-1],
        "flat": [-1],
    }
    model = _model(
        nodes, (1, 3, 8, 8), **{name: np.array(value, np.int64) for name, value in constants.items()}
    )
    graph = Graph(model)
    canonicalize(graph)
    assert [node.op_type for node in graph.nodes] == ["Conv"]
    x = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
    assert np.allclose(_answer(graph.to_model(), x), _answer(model, x), atol=1e-5)
