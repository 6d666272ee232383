"""Small quantized graphs for the tests of lowering passes, and two runtimes that do as the file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeattn.lower.base import LoweringPass, run_passes
from edgeattn.onnx_graph import Graph

Array = NDArray[Any]


def onnx_runtime_before(major: int, minor: int) -> bool:
    """Whether a fault, or a gap, that a release mended is to be expected here."""
    return tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (major, minor)


class Builder:
    """Collects nodes and constants under fresh names."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.number = 0

    def name(self, stem: str) -> str:
        self.number += 1
        return f"{stem}{self.number}"

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        result = self.name(op.lower())
        self.nodes.append(helper.make_node(op, list(inputs), [result], result, **attributes))
        return result

    def constant(self, value: Any) -> str:
        result = self.name("constant")
        self.constants[result] = np.asarray(value)
        return result

    def pair(
        self, tensor: str, scale: float, zero_point: int, dtype: type[np.integer[Any]] = np.uint8
    ) -> str:
        parameters = self.constant(np.float32(scale)), self.constant(dtype(zero_point))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", tensor, *parameters), *parameters)

    def weight(self, integers: Array, scales: Array, axis: int = 0) -> str:
        zeros = np.zeros(scales.shape, np.int8)
        parts = [
            self.constant(value) for value in (integers.astype(np.int8), scales.astype(np.float32), zeros)
        ]
        return self.add("DequantizeLinear", *parts, axis=axis)

    def model(self, inputs: Mapping[str, Sequence[int]], output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [output], ["result"], "result")],
            "test",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 9
        return onnx.shape_inference.infer_shapes(model)


def run(model: onnx.ModelProto, feeds: Mapping[str, Array], *, optimized: bool = False) -> Array:
    """Run in ONNX Runtime, operation by operation unless `optimized`."""
    result: Array = open_session(model, optimized=optimized).run(None, dict(feeds))[0]
    return result


def open_session(model: onnx.ModelProto, *, optimized: bool = False) -> Any:
    """Open in ONNX Runtime, which goes operation by operation unless `optimized`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_openvino(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    """Run in OpenVINO's CPU plugin; skips the test where it is not installed."""
    result: Array = compile_openvino(model)(dict(feeds))[0]
    return result


def compile_openvino(model: onnx.ModelProto) -> Any:
    """Compile for OpenVINO's CPU plugin; skips the test where it is not installed."""
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO")
    core = openvino.Core()
    # As the target does: processors with AMX would compute float layers in bfloat16.
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(model.SerializeToString()), "CPU", precision)


def operators_after_optimization(model: onnx.ModelProto, folder: Any) -> list[str]:
    """Return the operators that ONNX Runtime executes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in Graph(model).nodes]


def lower(model: onnx.ModelProto, *passes: LoweringPass) -> tuple[onnx.ModelProto, list[str]]:
    """Return the checked model after `passes`, and the names of those that changed it."""
    graph = Graph(model)
    changed = run_passes(graph, passes)
    graph.remove_unused()
    graph.sort()
    lowered = graph.to_model()
    onnx.checker.check_model(lowered, full_check=True)
    return lowered, changed


def branch_model(
    scale: float = 0.25, zero_point: int = 120, *, result: float | None = None
) -> onnx.ModelProto:
    """A residual sum in steps of twice `scale`, whose branch comes straight out of a convolution."""
    rng, b = np.random.default_rng(7), Builder()
    source = b.pair("x", scale, 128)
    weight = b.weight(rng.integers(-127, 128, (3, 3, 1, 1)), np.full(3, 2.0**-7, np.float32))
    bias = b.constant((rng.integers(-500, 500, 3) * scale * 2.0**-7).astype(np.float32))
    branch = b.pair(b.add("Conv", source, weight, bias), scale, zero_point)
    return b.model(
        {"x": (1, 3, 16, 16)}, b.pair(b.add("Add", source, branch), result or 2 * scale, zero_point)
    )
