"""Take in an ONNX file from anywhere: checked, then brought into the canonical spelling."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, checker, version_converter

from edgeattn.errors import ModelError
from edgeattn.export.canonical import canonicalize
from edgeattn.onnx_graph import Graph

__all__ = ["load_float_onnx", "read_onnx"]

LARGEST_BYTES = 1 << 30
_LEAST_OPSET = 13
_PREFERRED_OPSET = 17
_QUANTIZED = frozenset(
    ["QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear"]
)


def read_onnx(path: Path) -> ModelProto:
    """Read and check an ONNX file.

    Raises:
        ModelError: If it is missing, is not an ONNX model, keeps its weights in other files, or is invalid.
    """
    if not path.is_file():
        raise ModelError(f"There is no file {path}. Give an ONNX model.")
    if path.stat().st_size > LARGEST_BYTES:
        raise ModelError(f"{path} is larger than 1 GiB; this tool is made for mobile networks.")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError, UnicodeDecodeError) as exc:
        raise ModelError(f"{path} is not an ONNX model ({exc}). Export one first.") from exc
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{path} is not an ONNX model: it holds no graph. Export one first.")
    if any(item.data_location == onnx.TensorProto.EXTERNAL for item in model.graph.initializer):
        raise ModelError(
            f"{path} keeps weights in other files, which are not followed. Save it as one file: "
            "onnx.save(onnx.load(path), new_path)."
        )
    try:
        checker.check_model(model)
    except (checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ModelError(f"{path} is not a valid ONNX model: {exc}") from exc
    return model


def load_float_onnx(path: Path) -> ModelProto:
    """Read a float32 classifier and bring it into canonical form.

    Raises:
        ModelError: If it has several inputs or outputs, dynamic shapes, a batch other than 1, another
            element type, is already quantized, or uses operators outside the ONNX standard.
    """
    model = read_onnx(path)
    found = sorted({node.op_type for node in model.graph.node} & _QUANTIZED)
    if found:
        raise ModelError(
            f"{path} is already quantized (it holds {', '.join(found)}). Give the float32 model; "
            "`edgeattn parity` compares quantized ones."
        )
    foreign = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    if foreign:
        raise ModelError(
            f"{path} uses operators of {', '.join(foreign)}; only standard ONNX can be quantized."
        )
    model = _with_opset(model, path)
    graph = Graph(model)
    _check_ends(graph, path)
    canonicalize(graph)
    result = graph.to_model()
    checker.check_model(result, full_check=True)
    return result


def _check_ends(graph: Graph, path: Path) -> None:
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ModelError(
            f"{path} has {len(graph.inputs)} inputs ({', '.join(graph.input_names)}) and "
            f"{len(graph.outputs)} outputs; expected one image in and one tensor of logits out."
        )
    (given,), (result,) = graph.io_specs()
    if given.dtype != "float32":
        raise ModelError(f"{path}: input {given.name!r} is {given.dtype}; expected float32.")
    if len(given.shape) != 4 or given.shape[0] != 1:
        raise ModelError(
            f"{path}: input {given.name!r} has shape {given.shape}; expected (1, channels, height, width). "
            "Export with batch 1."
        )
    if len(result.shape) != 2:
        raise ModelError(f"{path}: output {result.name!r} has shape {result.shape}; expected (1, classes).")


def _with_opset(model: ModelProto, path: Path) -> ModelProto:
    opset = next((int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if opset >= _LEAST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, _PREFERRED_OPSET)
    except Exception as exc:
        # The converter raises bare RuntimeErrors of many kinds.
        raise ModelError(
            f"{path} uses opset {opset}, and cannot be converted to {_PREFERRED_OPSET} ({exc}). "
            f"Export it with opset {_PREFERRED_OPSET}."
        ) from exc
