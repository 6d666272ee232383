"""Rules about scales, zero points and element types of Q/DQ nodes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from edgeattn.lint.base import Evidence, Rule, View, name_of
from edgeattn.lower.patterns import dequantized_constant
from edgeattn.onnx_graph import Graph, attribute

__all__ = ["RULES"]


def _zero_type(view: View, node: NodeProto) -> str:
    """Return the integer type of a Q/DQ node; uint8 where nothing says otherwise, as ONNX has it."""
    if len(node.input) > 2 and node.input[2]:
        return view.types.get(node.input[2], "")
    if node.op_type == "DequantizeLinear":
        return view.types.get(node.input[0], "")
    stated = attribute(node, "output_dtype", 0)
    return {0: "uint8", 2: "uint8", 3: "int8"}.get(stated, "")


def _activation_quantizers(view: View) -> list[NodeProto]:
    return [node for node in view.nodes("QuantizeLinear") if node.input[0] not in view.graph.constants]


def _unsigned_activations(view: View) -> Iterator[Evidence]:
    for node in _activation_quantizers(view):
        if _zero_type(view, node) == "uint8":
            yield Evidence(name_of(node), node.input[0], "uint8")


def _asymmetric(view: View) -> Iterator[Evidence]:
    for node in view.nodes("QuantizeLinear", "DequantizeLinear"):
        zero = view.graph.constant(node.input[2]) if len(node.input) > 2 else None
        if zero is not None and zero.dtype == np.int8 and np.any(zero != 0):
            yield Evidence(name_of(node), node.input[0], f"zero point {int(zero.reshape(-1)[0])}")


def _per_channel_activations(view: View) -> Iterator[Evidence]:
    for node in _activation_quantizers(view):
        scale = view.graph.constant(node.input[1])
        if scale is not None and scale.size > 1:
            yield Evidence(name_of(node), node.input[0], f"{scale.size} scales")


def _quantized_scalars(view: View) -> Iterator[Evidence]:
    for node in view.nodes("Add", "Mul", "Sub", "Div", "Min", "Max"):
        for name in node.input:
            if _scalar_behind(view.graph, name) is not None:
                yield Evidence(
                    name_of(node), name, f"scalar {_scalar_behind(view.graph, name):g} behind Q/DQ"
                )


def _scalar_behind(graph: Graph, name: str) -> float | None:
    """Return the value of a scalar constant behind a DequantizeLinear, or behind a Q/DQ pair."""
    constant = dequantized_constant(graph, name)
    if constant is not None:
        if constant.integers.size != 1:
            return None
        steps = float(constant.integers.reshape(())) - float(np.asarray(constant.zero_point).reshape(-1)[0])
        return steps * float(constant.scale.reshape(-1)[0])
    pair = graph.producer.get(name)
    quantize = (
        graph.producer.get(pair.input[0]) if pair is not None and pair.op_type == "DequantizeLinear" else None
    )
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    value, scale = graph.scalar(quantize.input[0]), graph.scalar(quantize.input[1])
    if value is None or scale is None:
        return None
    zero = graph.constant(quantize.input[2]) if len(quantize.input) > 2 else None
    limits = np.iinfo(np.uint8 if zero is None else zero.dtype)
    offset = 0 if zero is None else int(zero.reshape(-1)[0])
    # As the runtime would: the fix keeps the rounded value.
    steps = np.clip(np.rint(np.float32(value) / np.float32(scale)) + offset, limits.min, limits.max)
    return float((steps - offset) * np.float32(scale))


def _fold_scalars(graph: Graph) -> bool:
    changed = False
    for node in [item for item in graph.nodes if item.op_type in ("Add", "Mul", "Sub", "Div", "Min", "Max")]:
        for index, name in enumerate(node.input):
            value = _scalar_behind(graph, name)
            if value is not None:
                folded = graph.fresh_name(f"{name}.folded")
                graph.constants[folded] = np.asarray(value, np.float32)
                node.input[index] = folded
                graph.reindex()
                changed = True
    return changed


def _signed_activations(view: View) -> Iterator[Evidence]:
    for node in _activation_quantizers(view):
        if _zero_type(view, node) == "int8":
            yield Evidence(name_of(node), node.input[0], "int8")


def _unsigned_weights(view: View) -> Iterator[Evidence]:
    for node in view.nodes("Conv", "Gemm", "MatMul"):
        constant = dequantized_constant(view.graph, node.input[1])
        if constant is not None and constant.integers.dtype == np.uint8:
            yield Evidence(name_of(node), constant.node.input[0], f"uint8, {constant.scale.size} scale(s)")


def _shift_type(graph: Graph, to_signed: bool, *, weights: bool) -> bool:
    """Spell integers of one signedness in the other: values and zero points move by 128, numbers stay."""
    if not weights and not _only_pairs(graph):
        return False
    source, result, shift = (np.uint8, np.int8, -128) if to_signed else (np.int8, np.uint8, 128)
    changed = False
    renamed: dict[str, str] = {}
    # Where only one side of a pair moved, types would not fit, so that all nodes of one kind move together.
    for node in [n for n in graph.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear")]:
        is_weight = node.input[0] in graph.constants
        if is_weight != weights or len(node.input) < 3:
            continue
        names = [2, 0] if is_weight else [2]
        if any((value := graph.constant(node.input[i])) is None or value.dtype != source for i in names):
            continue
        for index in names:
            old = node.input[index]
            if old not in renamed:
                renamed[old] = graph.fresh_name(f"{old}.{np.dtype(result).name}")
                moved = graph.constants[old].astype(np.int16) + shift
                graph.constants[renamed[old]] = moved.astype(result)
            node.input[index] = renamed[old]
        changed = True
    graph.reindex()
    return changed


def _only_pairs(graph: Graph) -> bool:
    """Return whether nothing but Q/DQ nodes sees an activation's integers: no output, no integer operation."""
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and node.input[0] not in graph.constants:
            users = graph.consumers.get(node.output[0], [])
            if node.output[0] in graph.output_names or any(u.op_type != "DequantizeLinear" for u in users):
                return False
        if node.op_type == "DequantizeLinear" and node.input[0] not in graph.constants:
            writer = graph.producer.get(node.input[0])
            if writer is None or writer.op_type != "QuantizeLinear":
                return False
    return True


def _sign_activations(graph: Graph) -> bool:
    """Spell unsigned activations signed where their zero point becomes 0."""
    zeros = [
        graph.constant(node.input[2])
        for node in graph.nodes
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        and node.input[0] not in graph.constants
        and len(node.input) > 2
    ]
    if any(zero is None or zero.dtype != np.uint8 or np.any(zero != 128) for zero in zeros):
        return False
    return _shift_type(graph, True, weights=False)


_ALL_TENSORRT = frozenset({"tensorrt", "dla"})
_CPU = frozenset({"openvino", "ort"})

RULES = (
    Rule(
        "TRT001",
        "unsigned activations",
        "TensorRT reads UINT8 as INT8: every value above 127 saturates, and only a warning says so.",
        _ALL_TENSORRT,
        "error",
        _unsigned_activations,
        _sign_activations,
    ),
    Rule(
        "TRT002",
        "a zero point other than 0",
        "TensorRT's INT8 kernels are symmetric: the parser refuses a zero point other than 0.",
        _ALL_TENSORRT,
        "error",
        _asymmetric,
    ),
    Rule(
        "QNT001",
        "activations quantized per channel",
        "TensorRT and ONNX Runtime have kernels for one scale per activation tensor only.",
        frozenset({"tensorrt", "dla", "ort"}),
        "error",
        _per_channel_activations,
    ),
    Rule(
        "QNT002",
        "a quantized scalar constant",
        'TensorRT fails with "Quantized constant is only allowed before DQ", and elsewhere it only costs a kernel.',
        frozenset({"tensorrt", "dla", "openvino", "ort"}),
        "error",
        _quantized_scalars,
        _fold_scalars,
    ),
    Rule(
        "ORT001",
        "signed activations on x86",
        "ONNX Runtime's S8S8 kernels take about twice as long as U8S8 on x86 processors with VNNI.",
        frozenset({"ort"}),
        "warning",
        _signed_activations,
        lambda graph: _shift_type(graph, False, weights=False),
    ),
    Rule(
        "CPU001",
        "unsigned weights",
        "Neither CPU runtime has a fast kernel for UINT8 weights: MobileNetV2 takes twice as long.",
        _CPU,
        "warning",
        _unsigned_weights,
        lambda graph: _shift_type(graph, True, weights=True),
    ),
)
