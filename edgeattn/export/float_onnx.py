"""From a torch module to a canonical fp32 ONNX whose tensors are named after the module's operations.

NNCF's function hooks name every operation by the module that runs it (``features/2/conv/6/mul/0``).
An identity marker is hooked behind each operation before the export; the markers carry those names
into the ONNX graph and are removed there. What is planned by name on the graph can so be put back
onto the very same operation of the torch module, for quantization-aware training.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import nn

from edgeattn.errors import ModelError
from edgeattn.export.canonical import WeightOrigin, canonicalize
from edgeattn.onnx_graph import Graph, attribute
from edgeattn.quant.nncf_ptq import quiet_nncf

__all__ = ["INPUT_NAME", "OPSET", "OUTPUT_NAME", "FloatExport", "export_float", "shadow"]

OPSET = 17
INPUT_NAME = "input"
OUTPUT_NAME = "logits"
_DOMAIN = "edgeattn.marker"


@dataclasses.dataclass(frozen=True)
class FloatExport:
    """A float ONNX model and how it relates to the module it came from.

    Attributes:
        model: Canonical fp32 ONNX: batch norms folded, constants folded, no identities.
        weights: For each weight of a convolution or Gemm, by its name in the graph, the module's
            operation that it belongs to.
        input_operation: Name under which hooks reach the module's input.
    """

    model: ModelProto
    weights: dict[str, WeightOrigin]
    input_operation: str


class _MarkFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, name: str) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def symbolic(graph: Any, value: Any, name: str) -> Any:
        return graph.op(f"{_DOMAIN}::Mark", value, name_s=name).setType(value.type())


class _Mark(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.op_name = name

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = _MarkFunction.apply(value, self.op_name)  # type: ignore[no-untyped-call]
        return result


def export_float(module: nn.Module, input_shape: Sequence[int]) -> FloatExport:
    """Export `module` in evaluation mode.

    Args:
        module: One NCHW float input, one output. It is left as it was.
        input_shape: Fixed shape, batch first.

    Returns:
        The canonical model: input ``"input"``, output ``"logits"``, opset 17.

    Raises:
        ModelError: If the module cannot be traced with that shape, or is a Sequential.
    """
    if isinstance(module, nn.Sequential):
        # The hooks' storage becomes a child of the module, which a Sequential would run as its last layer.
        raise ModelError(
            f"The network is an {type(module).__name__} itself, which cannot be hooked. Give a module that holds it and "
            "calls it in its forward."
        )
    training = module.training
    module.eval()
    try:
        marked, input_name = _with_markers(module, input_shape)
        with torch.no_grad():
            output_shape = tuple(marked(torch.zeros(*input_shape, device=_device(module))).shape)
        buffer = io.BytesIO()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                marked,
                (torch.zeros(*input_shape, device=_device(module)),),
                buffer,  # type: ignore[arg-type]  # a file object works with this exporter
                dynamo=False,
                opset_version=OPSET,
                custom_opsets={_DOMAIN: 1},
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
            )
    except (RuntimeError, ValueError, TypeError) as exc:
        raise ModelError(
            f"The network cannot be exported with the input shape {tuple(input_shape)}: {exc}"
        ) from exc
    finally:
        module.train(training)
    model = onnx.load_model_from_string(buffer.getvalue())
    graph = Graph(model)
    last_operation = _remove_markers(graph)
    # The last tensor is named after the graph's output; the operation behind it has its own name.
    origins = {
        name: dataclasses.replace(origin, operation=last_operation)
        if origin.operation == OUTPUT_NAME
        else origin
        for name, origin in canonicalize(graph).items()
    }
    result = graph.to_model()
    # Behind a marker the exporter knows no shape where the output is not a plain layer's.
    result.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info(OUTPUT_NAME, onnx.TensorProto.FLOAT, output_shape)
    )
    del result.opset_import[:]
    result.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    onnx.checker.check_model(result, full_check=True)
    return FloatExport(result, origins, input_name)


def operation_names(module: nn.Module, input_shape: Sequence[int]) -> tuple[str, list[str]]:
    """Return the name of the module's input and of every operation that it runs, in order."""
    from nncf.torch.function_hook import wrap_model
    from nncf.torch.function_hook.nncf_graph.nncf_graph_builder import build_nncf_graph

    with quiet_nncf(), torch.no_grad():
        graph = build_nncf_graph(
            wrap_model(shadow(module)), torch.zeros(*input_shape, device=_device(module))
        )
    nodes = graph.get_all_nodes()
    inputs = [node.node_name for node in nodes if node.node_type == "nncf_model_input"]
    if len(inputs) != 1:
        raise ModelError(f"The network takes {len(inputs)} tensors; expected one image batch.")
    skipped = {"nncf_model_input", "nncf_model_output", "nncf_model_const"}
    return inputs[0], [node.node_name for node in nodes if node.node_type not in skipped]


def shadow(module: nn.Module) -> nn.Module:
    """Return a structural copy that shares every Parameter and buffer, to hang hooks on."""
    memo: dict[int, Any] = {id(item): item for item in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo)


def _with_markers(module: nn.Module, input_shape: Sequence[int]) -> tuple[nn.Module, str]:
    from nncf.torch.function_hook import register_post_function_hook, wrap_model

    input_name, names = operation_names(module, input_shape)
    with quiet_nncf():
        marked: nn.Module = wrap_model(shadow(module))
        for name in names:
            register_post_function_hook(marked, name, 0, _Mark(name))
    marked.eval()
    return marked, input_name


def _remove_markers(graph: Graph) -> str:
    """Name tensors as their markers say, and return the name of the operation that writes the output."""
    renamed: dict[str, str] = {}
    alias: dict[str, str] = {}
    kept = []
    for node in graph.nodes:
        if node.domain != _DOMAIN:
            kept.append(node)
            continue
        source = node.input[0]
        while source in alias:
            source = alias[source]
        alias[node.output[0]] = source
        # The innermost operation names the tensor that it wrote.
        renamed.setdefault(source, str(attribute(node, "name")))
    outputs = graph.output_names
    last_operation = ""
    for node in kept:
        for index, name in enumerate(node.input):
            while name in alias:
                name = alias[name]
            node.input[index] = name
    for output in outputs:
        source = output
        while source in alias:
            source = alias[source]
        if source != output:
            for node in kept:
                node.output[:] = [output if name == source else name for name in node.output]
                node.input[:] = [output if name == source else name for name in node.input]
            last_operation = renamed.pop(source, "")
    graph.nodes = kept
    graph.reindex()
    produced = set(graph.producer)
    graph.rename({old: new for old, new in renamed.items() if old in produced})
    return last_operation


def _device(module: nn.Module) -> torch.device:
    for item in (*module.parameters(), *module.buffers()):
        return item.device
    return torch.device("cpu")
