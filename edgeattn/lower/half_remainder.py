"""Put what is not quantized into float16, with explicit Casts.

A strongly typed TensorRT network computes every operation in the type that the graph says. A QDQ graph says
INT8 where Q/DQ pairs are, and float32 everywhere else, so gates and pools would run in float32. This pass
casts their inputs to float16 and their results back. Three kinds of operations stay float32 in name:

* INT8 operations and what is fused behind them up to the next QuantizeLinear: they are INT8 kernels with
  float32 accumulators and scales, and float16 scales would only make them less exact.
* The first layer's QuantizeLinear reads the float32 input, and the last layer writes float32 logits.
* Operations with a tensor that float16 cannot hold: larger than 65504 less a margin, or so small that only
  subnormal numbers are left; divisions whose divisor it would let be 0; and operators that ONNX defines in float32
  alone. They are named in the model's metadata.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto, defs, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.divisor_guards import guarded_nodes
from edgeattn.lower.extents import bound_extents
from edgeattn.onnx_graph import Graph

__all__ = [
    "FLOAT32_KEY",
    "LARGEST_HALF",
    "HalfRemainder",
    "cast_to_half",
    "fits_half",
    "float32_nodes",
    "is_int8",
    "remainder",
]

FLOAT32_KEY = "edgeattn.float32"
"""Metadata entry: names of the nodes that stay float32 for their values or their operator, separated by spaces."""

LARGEST_HALF = 65504.0
"""Largest number of float16."""
_SMALLEST_NORMAL = 2.0**-14
_MARGIN = 4.0  # images that nobody calibrated with may reach further
_INT8 = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FUSED = frozenset({"Relu", "Clip", "Add"})
_FREE = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity"})
_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool"})
_MOVES = frozenset({"Reshape", "Flatten", "Transpose", "Concat", "Slice", "Split", "Squeeze", "Unsqueeze"})


@dataclasses.dataclass(frozen=True)
class HalfRemainder(EveryGraph):
    """Cast what is neither INT8 nor fused with it to float16."""

    name: str = "half-remainder"

    def __call__(self, graph: Graph) -> bool:
        """Insert the casts."""
        if not any(node.op_type == "QuantizeLinear" for node in graph.nodes):
            return False
        chosen, kept = remainder(graph)
        if kept:
            graph.metadata[FLOAT32_KEY] = " ".join(node.name or node.output[0] for node in kept)
        if chosen:
            cast_to_half(graph, chosen)
        return bool(chosen)

    def ensures(self, graph: Graph) -> str:
        """Check that nothing is left in float32 without a reason."""
        if not any(node.op_type == "QuantizeLinear" for node in graph.nodes):
            return ""
        named = set(float32_nodes(graph))
        left = [node for node in remainder(graph)[0] if (node.name or node.output[0]) not in named]
        return f"{left[0].name or left[0].output[0]!r} is left in float32" if left else ""


def float32_nodes(graph: Graph) -> list[str]:
    """Return the names of nodes that stay float32 because float16 cannot hold their values, or lacks the operator."""
    return graph.metadata.get(FLOAT32_KEY, "").split()


def is_int8(graph: Graph, node: NodeProto) -> bool:
    """Return whether a node's data inputs are all dequantized, and its result is one of an INT8 kernel.

    A pool or a move of data is one only where its result is quantized again.
    """
    count = 2 if node.op_type in _INT8 else len(node.input) if node.op_type == "Concat" else 1
    for name in node.input[:count]:
        producer = graph.producer.get(name)
        if producer is None or producer.op_type != "DequantizeLinear":
            return False
    if node.op_type in _INT8:
        return True
    return node.op_type in _POOLS | _MOVES and _is_quantized_behind(graph, node)


def _is_quantized_behind(graph: Graph, node: NodeProto) -> bool:
    users = [user for name in node.output for user in graph.consumers.get(name, [])]
    return bool(users) and all(user.op_type == "QuantizeLinear" for user in users)


def _is_fused(graph: Graph, node: NodeProto) -> bool:
    """Return whether a node lies between an INT8 operation and its QuantizeLinear, in one kernel with both."""
    if node.op_type not in _FUSED:
        return False
    users = graph.consumers.get(node.output[0], [])
    if not users or node.output[0] in graph.output_names:
        return False
    if not all(user.op_type == "QuantizeLinear" or _is_fused(graph, user) for user in users):
        return False
    producers = [_made_by(graph, name) for name in node.input if name not in graph.constants]
    return all(
        item is not None
        and (item.op_type == "DequantizeLinear" or _is_kernel(graph, item) or _follows(graph, item))
        for item in producers
    )


def _follows(graph: Graph, node: NodeProto) -> bool:
    return node.op_type in _FUSED and any(
        (item := _made_by(graph, name)) is not None and _is_kernel(graph, item) for name in node.input
    )


def _is_kernel(graph: Graph, node: NodeProto) -> bool:
    """Return whether a node is an INT8 kernel, whatever type it has in name."""
    if node.op_type not in _INT8:
        return is_int8(graph, node)
    makers = (_made_by(graph, name) for name in node.input[:2])
    return all(item is not None and item.op_type == "DequantizeLinear" for item in makers)


def _made_by(graph: Graph, name: str) -> NodeProto | None:
    """Return what computes a tensor: casts round an INT8 product change no kernel (`half_products`)."""
    node = graph.producer.get(name)
    while node is not None and node.op_type == "Cast":
        node = graph.producer.get(node.input[0])
    return node


def remainder(graph: Graph) -> tuple[list[NodeProto], list[NodeProto]]:
    """Return the nodes that are float32 and can be float16, and those whose values or operator forbid it."""
    extents = bound_extents(graph)
    types = graph.element_types()
    guarded = guarded_nodes(graph)
    chosen: list[NodeProto] = []
    kept: list[NodeProto] = []
    for node in graph.nodes:
        if node.op_type in _FREE or types.get(node.output[0]) != "float32":
            continue
        if is_int8(graph, node) or _is_fused(graph, node):
            continue
        fits = id(node) not in guarded and all(
            fits_half(extents.get(name))
            for name in (*node.input, *node.output)
            if name and types.get(name) == "float32" and not _is_bias(node, name)
        )
        (chosen if fits and _makes_half(graph, node) else kept).append(node)
    return chosen, kept


def _takes_half(graph: Graph, node: NodeProto, index: int) -> bool:
    """Return whether ONNX has an operator's input in float16: not the factors of a Resize."""
    schema = _schema(graph, node)
    return schema is None or _has_half(schema.inputs, index)


def _makes_half(graph: Graph, node: NodeProto) -> bool:
    """Return whether ONNX has an operator's result in float16: not Celu's."""
    schema = _schema(graph, node)
    return schema is None or _has_half(schema.outputs, 0)


def _schema(graph: Graph, node: NodeProto) -> defs.OpSchema | None:
    try:
        return defs.get_schema(node.op_type, graph.opset)
    except defs.SchemaError:
        return None


def _has_half(formals: Sequence[defs.OpSchema.FormalParameter], index: int) -> bool:
    # The last may stand for any number of them.
    return not formals or "tensor(float16)" in formals[min(index, len(formals) - 1)].types


def _is_bias(node: NodeProto, name: str) -> bool:
    # A bias is added to what it is far smaller than, so that its own last digits do not matter, and a bound
    # beyond float16 bounds nothing there.
    if node.op_type == "Clip":
        return name in node.input[1:]
    return node.op_type in _INT8 and name in node.input[2:]


def fits_half(extent: float | None) -> bool:
    """Return whether float16 holds values of this size; what nothing is known about does not fit."""
    if extent is None:
        return False
    return extent == 0.0 or _SMALLEST_NORMAL <= extent <= LARGEST_HALF / _MARGIN


def cast_to_half(graph: Graph, chosen: list[NodeProto]) -> None:
    """Cast what `chosen` read to float16, and back what others read of their results."""
    _cast_inputs(graph, chosen)
    _cast_outputs(graph, chosen)


def _cast_inputs(graph: Graph, chosen: list[NodeProto]) -> None:
    types = graph.element_types()
    inside = {name for node in chosen for name in node.output}
    made: dict[str, str] = {}
    for node in chosen:
        for index, name in enumerate(node.input):
            if name in inside or types.get(name) != "float32" or not _takes_half(graph, node, index):
                continue
            if name not in made:
                made[name] = graph.fresh_name(f"{name}.half")
                if name in graph.constants:
                    graph.constants[made[name]] = graph.constants[name].astype(np.float16)
                else:
                    graph.nodes.append(_cast(name, made[name], TensorProto.FLOAT16))
            node.input[index] = made[name]
    graph.reindex()


def _cast_outputs(graph: Graph, chosen: list[NodeProto]) -> None:
    ids = {id(node) for node in chosen}
    for node in chosen:
        for index, name in enumerate(node.output):
            others = [user for user in graph.consumers.get(name, []) if id(user) not in ids]
            if name in graph.output_names:
                half = graph.fresh_name(f"{name}.half")
                graph.replace_input(name, half)
                node.output[index] = half
                graph.nodes.append(_cast(half, name, TensorProto.FLOAT))
            elif others:
                single = graph.fresh_name(f"{name}.single")
                graph.replace_input(name, single, others)
                graph.nodes.append(_cast(name, single, TensorProto.FLOAT))
            graph.reindex()
    graph.sort()


def _cast(source: str, result: str, element_type: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}.cast", to=element_type)
