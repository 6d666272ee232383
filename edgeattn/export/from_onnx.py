"""Take in an ONNX file from anywhere: checked, then brought into the canonical spelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, checker, external_data_helper, shape_inference, version_converter

from edgeattn.errors import ModelError
from edgeattn.export.canonical import canonicalize
from edgeattn.onnx_graph import Graph, io_spec

__all__ = ["load_float_onnx", "read_onnx"]

LARGEST_BYTES = 1 << 30
_LEAST_OPSET = 13
_PREFERRED_OPSET = 17
_TOO_LARGE = "{path} is larger than 1 GiB; this tool is made for mobile networks."
_QUANTIZED = frozenset(
    ["QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear"]
)


def read_onnx(path: Path) -> ModelProto:
    """Read and check an ONNX file, with weights that it keeps in files beside it, as torch's exporter writes them.

    Raises:
        ModelError: If it is missing, is not an ONNX model, keeps weights elsewhere, is too large, or is invalid.
    """
    if not path.is_file():
        raise ModelError(f"There is no file {path}. Give an ONNX model.")
    if path.stat().st_size > LARGEST_BYTES:
        raise ModelError(_TOO_LARGE.format(path=path))
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError, UnicodeDecodeError) as exc:
        raise ModelError(f"{path} is not an ONNX model ({exc}). Export one first.") from exc
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{path} is not an ONNX model: it holds no graph. Export one first.")
    _take_in_weights(model, path)
    try:
        checker.check_model(model)
    except (checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ModelError(f"{path} is not a valid ONNX model: {exc}") from exc
    return model


def _take_in_weights(model: ModelProto, path: Path) -> None:
    """Read weights from other files into the model; onnx refuses what lies outside the model's folder."""
    attributes = (item for node in model.graph.node for item in node.attribute if item.HasField("t"))
    tensors = [*model.graph.initializer, *(item.t for item in attributes)]
    size_bytes = 0
    for tensor in tensors:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        try:
            size_bytes += _length_of(external_data_helper.ExternalDataInfo(tensor), path.parent)
            if size_bytes > LARGEST_BYTES:
                raise ModelError(_TOO_LARGE.format(path=path))
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except (OSError, ValueError, checker.ValidationError) as exc:
            raise ModelError(
                f"{path} keeps the weight {tensor.name!r} in another file, which cannot be read "
                f"({' '.join(str(exc).split())[:300]}). Put that file beside the model as its exporter wrote it, or "
                "export to one file (torch.onnx.export(..., external_data=False))."
            ) from exc


def _length_of(info: Any, folder: Path) -> int:
    """Return how many bytes of another file a weight takes: to its end, where no length is said."""
    if info.length is not None:
        return int(info.length)
    return max(int((folder / info.location).stat().st_size) - int(info.offset or 0), 0)


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
    graph = Graph(_with_opset(model, path))
    _check_input(graph, path)
    canonicalize(graph)
    _settle_outputs(graph)
    _check_output(graph, path)
    result = graph.to_model()
    checker.check_model(result, full_check=True)
    return result


def _settle_outputs(graph: Graph) -> None:
    """Write the sizes of outputs that an exporter left open although they follow from the inputs."""
    if not any(map(_is_open, graph.outputs)):
        return
    asked = graph.to_model()
    for item in asked.graph.output:
        item.type.tensor_type.ClearField("shape")
    try:
        known = shape_inference.infer_shapes(asked, data_prop=True).graph.output
    except (shape_inference.InferenceError, RuntimeError):
        return  # the error about open sizes says what to do
    graph.outputs = [
        item if _is_open(settled) else settled for item, settled in zip(graph.outputs, known, strict=True)
    ]


def _is_open(item: onnx.ValueInfoProto) -> bool:
    kind = item.type.tensor_type
    return not kind.HasField("shape") or any(not dim.dim_value for dim in kind.shape.dim)


def _check_input(graph: Graph, path: Path) -> None:
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ModelError(
            f"{path} has {len(graph.inputs)} inputs ({', '.join(graph.input_names)}) and "
            f"{len(graph.outputs)} outputs; expected one image in and one tensor of logits out."
        )
    given = io_spec(graph.inputs[0])
    if given.dtype != "float32":
        raise ModelError(f"{path}: input {given.name!r} is {given.dtype}; expected float32.")
    if len(given.shape) != 4 or given.shape[0] != 1:
        raise ModelError(
            f"{path}: input {given.name!r} has shape {given.shape}; expected (1, channels, height, width). "
            "Export with batch 1."
        )


def _check_output(graph: Graph, path: Path) -> None:
    result = io_spec(graph.outputs[0])
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
