"""Take in an ONNX file from anywhere: checked, then brought into the canonical spelling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, checker, external_data_helper, shape_inference, version_converter

from edgeattn.errors import ModelError
from edgeattn.export.canonical import canonicalize, name_nodes, settle_constants
from edgeattn.export.canonical_affine import fold_affine
from edgeattn.export.canonical_spellings import name_outputs_directly
from edgeattn.onnx_graph import Graph, io_spec

__all__ = ["load_float_onnx", "read_fixed_onnx", "read_onnx"]

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


def read_fixed_onnx(path: Path, input_shape: Sequence[int] | None = None) -> ModelProto:
    """Read a file as `read_onnx` does, and fix sizes that it leaves open, outputs' included.

    Args:
        path: The file.
        input_shape: (1, C, H, W) where the file leaves sizes open. None takes an open batch for 1, and nothing else.

    Raises:
        ModelError: As `read_onnx`, or if the shape does not fit the file.
    """
    model = read_onnx(path)
    if not _fix_sizes(model, path, input_shape):
        return model
    graph = Graph(model)
    settle_constants(graph)
    _settle_outputs(graph)
    return graph.to_model()


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
        # Some releases of onnx leave that to the caller, and call the result invalid.
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _length_of(info: Any, folder: Path) -> int:
    """Return how many bytes of another file a weight takes: to its end, where no length is said."""
    if info.length is not None:
        return int(info.length)
    return max(int((folder / info.location).stat().st_size) - int(info.offset or 0), 0)


def load_float_onnx(path: Path, input_shape: Sequence[int] | None = None) -> ModelProto:
    """Read a float32 network with one image as input and bring it into canonical form.

    Args:
        path: The file.
        input_shape: (1, C, H, W) where the file leaves sizes open. None takes an open batch for 1, and nothing else.

    Raises:
        ModelError: If it has several inputs, dynamic shapes, a batch other than 1, another
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
    _fix_sizes(model, path, input_shape)
    graph = Graph(_with_opset(model, path))
    _check_input(graph, path)
    canonicalize(graph)
    name_outputs_directly(graph)
    fold_affine(graph)
    name_nodes(graph)
    _settle_outputs(graph)
    _check_outputs(graph, path)
    result = graph.to_model()
    checker.check_model(result, full_check=True)
    return result


def _fix_sizes(model: ModelProto, path: Path, wanted: Sequence[int] | None) -> bool:
    """Write the sizes of the image into a graph that leaves some open, in place; return whether any was."""
    weights = {item.name for item in model.graph.initializer}
    images = [item for item in model.graph.input if item.name not in weights]
    if len(images) != 1:
        return False  # the error about inputs says so
    dims = images[0].type.tensor_type.shape.dim
    given = [dim.dim_value if dim.dim_value > 0 else None for dim in dims]
    if wanted is None:
        if None not in given or given[0] is not None or None in given[1:]:
            return False  # all fixed, or the error about open sizes says how
        wanted = [1, *(size for size in given[1:] if size is not None)]
    if len(given) != len(wanted) or any(
        old not in (None, new) for old, new in zip(given, wanted, strict=True)
    ):
        shown = ", ".join("open" if size is None else str(size) for size in given)
        raise ModelError(
            f"{path}: input {images[0].name!r} has shape ({shown}), which {tuple(wanted)} does not fit. "
            "Sizes that the file fixes cannot be changed; export it again."
        )
    if None not in given:
        return False
    for dim, size in zip(dims, wanted, strict=True):
        dim.dim_value = size
    # What was written down for open sizes, and follows from the input's now.
    del model.graph.value_info[:]
    for item in model.graph.output:
        item.type.tensor_type.ClearField("shape")
    return True


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
    if len(graph.inputs) != 1 or not graph.outputs:
        raise ModelError(
            f"{path} has {len(graph.inputs)} inputs ({', '.join(graph.input_names)}) and "
            f"{len(graph.outputs)} outputs; expected one image in and at least one tensor out."
        )
    given = io_spec(graph.inputs[0])
    if given.dtype != "float32":
        raise ModelError(f"{path}: input {given.name!r} is {given.dtype}; expected float32.")
    if len(given.shape) != 4 or given.shape[0] != 1:
        raise ModelError(
            f"{path}: input {given.name!r} has shape {given.shape}; expected (1, channels, height, width). "
            "Export with batch 1."
        )


def _check_outputs(graph: Graph, path: Path) -> None:
    for result in map(io_spec, graph.outputs):
        if len(result.shape) < 2 or result.shape[0] != 1 or result.dtype != "float32":
            raise ModelError(
                f"{path}: output {result.name!r} is {result.dtype} of shape {result.shape}; expected float32 with batch 1 "
                "in front, as (1, classes) or (1, channels, height, width). Export the network without what follows its "
                "last layer, such as a choice of boxes."
            )


def _with_opset(model: ModelProto, path: Path) -> ModelProto:
    opset = next((int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if opset >= _PREFERRED_OPSET:
        return model
    try:
        return version_converter.convert_version(model, _PREFERRED_OPSET)
    except Exception as exc:
        # The converter raises bare RuntimeErrors of many kinds.
        if opset >= _LEAST_OPSET:
            return model  # without the operators that came later, such as HardSwish
        raise ModelError(
            f"{path} uses opset {opset}, and cannot be converted to {_PREFERRED_OPSET} ({exc}). "
            f"Export it with opset {_PREFERRED_OPSET}."
        ) from exc
