"""One small model for every operator that networks are made of, and ONNX Runtime's answer to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi import onnxruntime_pybind11_state as errors

SHAPE = (2, 4, 6, 4)
RNG = np.random.default_rng(1)
X = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)


def model_of(
    nodes: list[Any], constants: dict[str, Any], opset: int = 17, shape: tuple[int, ...] = SHAPE
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    return model


def random(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*values: int) -> Any:
    return np.array(values, np.int64)


Case = tuple[list[Any], dict[str, Any], int]


def case(op: str, *constants: Any, opset: int = 17, **attributes: Any) -> Case:
    """One node that reads ``x`` and constants; None for an input that is left out."""
    names = ["" if value is None else f"c{i}" for i, value in enumerate(constants)]
    node = helper.make_node(op, ["x", *names], ["y"], **attributes)
    kept = {name: value for name, value in zip(names, constants, strict=True) if name}
    return [node], kept, opset


def positive(op: str) -> Case:
    """For what is defined above zero only."""
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Add", ["a", "half"], ["p"]),
        helper.make_node(op, ["p"], ["y"]),
    ]
    return nodes, {"half": np.float32(0.5)}, 17


def masked(op: str, bound: float) -> Case:
    """A comparison, which has no gradient itself, between a condition and what it chooses."""
    nodes = [
        helper.make_node("Round", ["x"], ["r"]),
        helper.make_node(op, ["r", "bound"], ["m"]),
        helper.make_node("Where", ["m", "x", "other"], ["y"]),
    ]
    return nodes, {"bound": np.float32(bound), "other": np.float32(-3)}, 17


def split(sizes: Any, **attributes: Any) -> Case:
    inputs = ["x"] if sizes is None else ["x", "sizes"]
    nodes = [
        helper.make_node("Split", inputs, ["a", "b"], axis=1, **attributes),
        helper.make_node("Concat", ["b", "a"], ["y"], axis=1),
    ]
    return nodes, {} if sizes is None else {"sizes": sizes}, 18 if attributes else 17


def followed(first: Any, constants: dict[str, Any] | None = None) -> Case:
    """A node from ``x`` to ``s`` that stops gradients, beside a path that does not."""
    return [first, helper.make_node("Mul", ["x", "s"], ["y"])], constants or {}, 17


GRID = RNG.uniform(-1.2, 1.2, (2, 6, 3, 2)).astype(np.float32)
CASES: dict[str, Case] = {
    "Abs": case("Abs"),
    "Add": case("Add", random(4, 1, 1)),
    "AveragePool": case("AveragePool", kernel_shape=[3, 3], strides=[2, 1], pads=[1, 1, 1, 1]),
    "AveragePool with padding": case(
        "AveragePool", kernel_shape=[3, 2], pads=[1, 0, 1, 1], count_include_pad=1
    ),
    "BatchNormalization": case(
        "BatchNormalization", random(4), random(4), random(4), np.abs(random(4)) + 0.1
    ),
    "Cast": (
        [
            helper.make_node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE),
            helper.make_node("Cast", ["d"], ["y"], to=1),
        ],
        {},
        17,
    ),
    "Ceil": followed(helper.make_node("Ceil", ["x"], ["s"])),
    "Celu": case("Celu", alpha=0.7),
    "Clip": case("Clip", np.float32(-0.5), np.float32(0.7)),
    "Concat": case("Concat", random(2, 1, 6, 4), axis=1),
    "Conv": case("Conv", random(4, 2, 3, 3), random(4), group=2, pads=[0, 1, 1, 1], strides=[2, 1]),
    "ConvTranspose": case(
        "ConvTranspose", random(4, 3, 2, 2), random(6), group=2, strides=[2, 2], output_padding=[1, 0]
    ),
    "Cos": case("Cos"),
    "DepthToSpace crd": case("DepthToSpace", blocksize=2, mode="CRD"),
    "DepthToSpace dcr": case("DepthToSpace", blocksize=2),
    "Div": case("Div", np.float32(3)),
    "Einsum": case("Einsum", random(4, 5), equation="nchw,cd->ndhw"),
    "Elu": case("Elu", alpha=0.6),
    "Equal": masked("Equal", 0),
    "Erf": case("Erf"),
    "Exp": case("Exp"),
    "Expand": (
        [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[2]),
            helper.make_node("Expand", ["m", "shape"], ["y"]),
        ],
        {"shape": whole(1, 4, 6, 4)},
        17,
    ),
    "Flatten": case("Flatten"),
    "Floor": followed(helper.make_node("Floor", ["x"], ["s"])),
    "Gather": case("Gather", whole(2, -1), axis=2),
    "Gather one": case("Gather", np.array(-1, np.int64), axis=1),
    "Gelu": case("Gelu", opset=20),
    "Gelu tanh": case("Gelu", opset=20, approximate="tanh"),
    "Gemm": (
        [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("Gemm", ["f", "w", "b"], ["y"], transB=1, alpha=0.5),
        ],
        {"w": random(3, 96), "b": random(3)},
        17,
    ),
    "GlobalAveragePool": case("GlobalAveragePool"),
    "GlobalMaxPool": case("GlobalMaxPool"),
    "Greater": masked("Greater", 0),
    "GridSample": case("GridSample", GRID, mode="bilinear"),
    "GroupNormalization": case("GroupNormalization", random(4), random(4), opset=21, num_groups=2),
    "HardSigmoid": case("HardSigmoid", alpha=0.3),
    "HardSwish": case("HardSwish"),
    "Identity": case("Identity"),
    "InstanceNormalization": case("InstanceNormalization", random(4), random(4)),
    "LayerNormalization": case("LayerNormalization", random(4), random(4)),
    "LayerNormalization from an axis": case("LayerNormalization", random(6, 4), axis=2),
    "LeakyRelu": case("LeakyRelu", alpha=0.2),
    "Less": masked("Less", 1),
    "Log": positive("Log"),
    "LogSoftmax": case("LogSoftmax", axis=1),
    "MatMul": case("MatMul", random(4, 5)),
    "Max": case("Max", random(4, 1, 1), np.float32(0.1)),
    "MaxPool": case("MaxPool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1]),
    "MaxPool rounded up": case("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "Mean": case("Mean", random(4, 1, 1), np.float32(0.1)),
    "Min": case("Min", random(4, 1, 1)),
    "Mish": case("Mish", opset=18),
    "Mul": case("Mul", random(6, 1)),
    "Neg": case("Neg"),
    "PRelu": case("PRelu", random(4, 1, 1)),
    "Pad": case("Pad", whole(0, 0, 1, 0, 0, 0, -1, 2), np.float32(0.5)),
    "Pad axes": case("Pad", whole(2, 1), None, whole(-1), opset=18),
    "Pad channels": case("Pad", whole(0, 2, 0, 0, 0, 1, 0, 0)),
    "Pad edge": case("Pad", whole(0, 0, 1, 0, 0, 0, 3, 2), mode="edge"),
    "Pad reflect": case("Pad", whole(0, 0, 1, 0, 0, 0, 3, 2), mode="reflect"),
    "Pow": case("Pow", np.float32(2)),
    "RMSNormalization": case("RMSNormalization", random(4), opset=23),
    "Reciprocal": positive("Reciprocal"),
    "ReduceL1": case("ReduceL1", axes=[1]),
    "ReduceL2": case("ReduceL2", axes=[1, 2]),
    "ReduceMax": case("ReduceMax", axes=[2, 3]),
    "ReduceMean": case("ReduceMean", whole(1), opset=18),
    "ReduceMin": case("ReduceMin", axes=[1], keepdims=0),
    "ReduceSum": case("ReduceSum", whole(1, 3), keepdims=0),
    "ReduceSumSquare": case("ReduceSumSquare", axes=[-1]),
    "Relu": case("Relu"),
    "Reshape": case("Reshape", whole(0, 2, -1)),
    "Resize linear": case(
        "Resize", None, None, whole(2, 4, 7, 9), mode="linear", coordinate_transformation_mode="half_pixel"
    ),
    "Resize nearest": case(
        "Resize",
        None,
        None,
        whole(2, 4, 7, 9),
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    ),
    "Round": followed(helper.make_node("Round", ["x"], ["s"])),
    "Selu": case("Selu"),
    "Sigmoid": case("Sigmoid"),
    "Sign": followed(helper.make_node("Sign", ["x"], ["s"])),
    "Sin": case("Sin"),
    "Slice": case("Slice", whole(1), whole(100), whole(2)),
    "Softmax": case("Softmax", axis=1),
    "Softplus": case("Softplus"),
    "Softsign": case("Softsign"),
    "SpaceToDepth": case("SpaceToDepth", blocksize=2),
    "Split in sizes": split(whole(1, 3)),
    "Split evenly": split(None, num_outputs=2),
    "Sqrt": positive("Sqrt"),
    "Squeeze": (
        [
            helper.make_node("ReduceMax", ["x"], ["m"], axes=[2]),
            helper.make_node("Squeeze", ["m", "axes"], ["y"]),
        ],
        {"axes": whole(2)},
        17,
    ),
    "Sub": case("Sub", random(4, 1, 1)),
    "Sum": case("Sum", random(4, 1, 1), np.float32(0.1)),
    "Swish": case("Swish", opset=24, alpha=1.5),
    "Tanh": case("Tanh"),
    "ThresholdedRelu": case("ThresholdedRelu", alpha=0.4),
    "Transpose": case("Transpose", perm=[0, 2, 3, 1]),
    "Unsqueeze": case("Unsqueeze", whole(0, -1)),
    "Where": masked("Greater", 1),
}


VARIANTS: list[tuple[str, list[Any], dict[str, Any]]] = [
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
"""Attributes that torch writes otherwise, or not at all: operator, constants, attributes."""


def expected_of(model: ModelProto, x: Any) -> Any:
    """ONNX Runtime's answer; ONNX's own evaluator's where the runtime does not know the operator or its opset yet."""
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except (errors.NotImplemented, errors.Fail, errors.InvalidArgument) as exc:
        if not isinstance(exc, errors.NotImplemented) and "opset" not in str(exc):
            raise
        return ReferenceEvaluator(model).run(None, {"x": x})[0]
    return session.run(None, {"x": x})[0]
