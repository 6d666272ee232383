"""Bring an fp32 ONNX graph into the one spelling that planning and emission expect.

Constants and identities are folded, batch norms go into the convolution or Gemm before them, zero pads into the
convolution behind them, clips are written with constant bounds, h-sigmoid and h-swish as one operation. The function
computed stays the same up to float rounding.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from edgeattn.export.canonical_activations import fold_activations
from edgeattn.export.canonical_spellings import drop_idle_pools, join_softmax, make_pads_explicit
from edgeattn.onnx_graph import Graph, attribute
from edgeattn.onnx_node import evaluate_node

__all__ = [
    "WeightOrigin",
    "canonicalize",
    "fold_batch_norms",
    "fold_constants",
    "fold_pads",
    "name_nodes",
    "own_copy",
    "remove_identities",
    "settle_constants",
    "widen_pads",
    "zero_pads",
]

Float64 = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class WeightOrigin:
    """Where a weight of the canonical graph comes from.

    Attributes:
        operation: Output of the convolution or linear layer before folding: the module's operation.
        norm: Output of the batch norm that was folded into it, or an empty string.
        bias: The bias constant beside it in the canonical graph, or an empty string.
        ratio: What folding multiplied each output channel of the module's weight with.
    """

    operation: str
    norm: str
    bias: str
    ratio: Float64


def canonicalize(graph: Graph) -> dict[str, WeightOrigin]:
    """Fold what can be folded, in place.

    Returns:
        The origin of the weight of every convolution and linear layer, by its name in the canonical graph.
    """
    settle_constants(graph)
    make_pads_explicit(graph)
    drop_idle_pools(graph)
    join_softmax(graph)
    fold_pads(graph)
    fold_activations(graph)
    origins = fold_batch_norms(graph)
    graph.remove_unused()
    name_nodes(graph)
    return origins


def settle_constants(graph: Graph) -> None:
    """Compute what is known without the image, in place: constants of constants, and questions for shapes."""
    left = None
    while left != len(graph.nodes):  # a constant may settle a shape, and a shape a constant
        left = len(graph.nodes)
        remove_identities(graph)
        fold_shapes(graph)
        fold_constants(graph)


def remove_identities(graph: Graph) -> None:
    """Remove Identity, and Dropout as it is in inference; copies of constants become constants."""
    for node in list(graph.nodes):
        if node.op_type not in ("Identity", "Dropout"):
            continue
        source, result = node.input[0], node.output[0]
        if result in graph.output_names:
            continue
        graph.nodes.remove(node)
        graph.reindex()
        graph.replace_input(result, source)


def fold_shapes(graph: Graph) -> None:
    """Replace questions for the shape of a tensor by the answer: every shape here is fixed."""
    asked = [node for node in graph.nodes if node.op_type == "Shape" and not node.attribute]
    if not asked:
        return
    shapes = graph.shapes()
    for node in asked:
        shape = shapes.get(node.input[0])
        if shape and all(size > 0 for size in shape):
            graph.constants[node.output[0]] = np.asarray(shape, np.int64)
            graph.nodes.remove(node)
    graph.reindex()


def fold_constants(graph: Graph) -> None:
    """Evaluate nodes all of whose inputs are constants."""
    for node in list(graph.nodes):
        inputs = [name for name in node.input if name]
        if node.domain not in ("", "ai.onnx") or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if node.op_type == "Shape" and not inputs:
            continue
        if not all(name in graph.constants for name in inputs):
            continue
        values = evaluate_node(node, {name: graph.constants[name] for name in inputs}, graph.opset)
        graph.constants.update(zip((name for name in node.output if name), values, strict=True))
        graph.nodes.remove(node)
    graph.reindex()


def fold_pads(graph: Graph) -> None:
    """Move zero pads into the convolutions behind them: between quantized tensors they are a pass over the map."""
    for pad in [node for node in graph.nodes if node.op_type == "Pad"]:
        sides = zero_pads(graph, pad)
        users = graph.consumers.get(pad.output[0], [])
        if sides is None or not users or pad.output[0] in graph.output_names:
            continue
        if any(user.op_type != "Conv" or user.input[0] != pad.output[0] for user in users):
            continue
        if any(attribute(user, "auto_pad", "NOTSET") not in ("NOTSET", "") for user in users):
            continue
        for user in users:
            widen_pads(user, sides)
        graph.replace_input(pad.output[0], pad.input[0])
        graph.nodes.remove(pad)
        graph.reindex()


def zero_pads(graph: Graph, pad: NodeProto) -> list[int] | None:
    """Return what a Pad of zeros adds to a map: (top, left, bottom, right) in pixels; None for any other Pad."""
    amounts = graph.constant(pad.input[1])
    value = graph.scalar(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else 0.0
    if attribute(pad, "mode", "constant") != "constant" or amounts is None or value != 0.0:
        return None
    axes = np.arange(amounts.size // 2)
    if len(pad.input) > 3 and pad.input[3]:
        given = graph.constant(pad.input[3])
        if given is None or len(graph.shapes().get(pad.input[0], ())) != 4:
            return None
        axes = given % 4
    elif amounts.size != 8:
        return None
    sides = np.zeros((2, 4), np.int64)
    sides[:, axes] = amounts.reshape(2, -1)
    if sides.min() < 0 or sides[:, :2].any():
        return None
    return [int(side) for side in sides[:, 2:].reshape(-1)]


def widen_pads(conv: NodeProto, sides: list[int]) -> None:
    """Add (top, left, bottom, right) to a convolution's pads."""
    pads = [int(old) + new for old, new in zip(attribute(conv, "pads", [0, 0, 0, 0]), sides, strict=True)]
    kept = [item for item in conv.attribute if item.name not in ("pads", "auto_pad")]
    del conv.attribute[:]
    conv.attribute.extend([*kept, helper.make_attribute("pads", pads)])


def fold_batch_norms(graph: Graph) -> dict[str, WeightOrigin]:
    """Multiply batch norms into the weights before them; others become Mul and Add.

    Computed in float64: weight and bias are rounded to float32 once.
    """
    operations = {
        id(node): node.output[0]
        for node in graph.nodes
        if node.op_type in ("Conv", "Gemm") and node.input[1] in graph.constants
    }
    folded: dict[int, tuple[str, Float64]] = {}
    for node in list(graph.nodes):
        if node.op_type != "BatchNormalization":
            continue
        gamma, beta, mean, variance = (graph.constants[name].astype(np.float64) for name in node.input[1:5])
        factor = gamma / np.sqrt(variance + float(attribute(node, "epsilon", 1e-5)))
        shift = beta - mean * factor
        before = graph.producer.get(node.input[0])
        if before is None or id(before) in folded or not _absorbs(graph, before):
            _as_multiply_add(graph, node, factor, shift)
            continue
        weight_name = own_copy(graph, before, 1)
        weight = graph.constants[weight_name]
        axis = 0 if before.op_type == "Conv" or attribute(before, "transB", 0) else 1
        shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
        graph.constants[weight_name] = (weight * factor.reshape(shape)).astype(np.float32)
        bias = graph.constants[before.input[2]].astype(np.float64) if len(before.input) > 2 else 0.0
        bias_name = graph.fresh_name(f"{weight_name}.folded_bias")
        graph.constants[bias_name] = np.asarray(bias * factor + shift, np.float32).reshape(-1)
        del before.input[2:]
        before.input.append(bias_name)
        # The result keeps the batch norm's name: that is the operation a hook can reach.
        folded[id(before)] = (node.output[0], factor)
        before.output[0] = node.output[0]
        graph.nodes.remove(node)
        graph.reindex()
    origins: dict[str, WeightOrigin] = {}
    for node in graph.nodes:
        if id(node) not in operations:
            continue
        weight_name = own_copy(graph, node, 1)
        channels = graph.constants[weight_name].shape[_output_axis(node)]
        norm, factor = folded.get(id(node), ("", np.ones(channels)))
        # Equal constants are exported once; a correction of one layer must not reach another.
        bias_name = own_copy(graph, node, 2) if len(node.input) > 2 else ""
        origins[weight_name] = WeightOrigin(operations[id(node)], norm, bias_name, factor)
    return origins | _token_layers(graph)


def _token_layers(graph: Graph) -> dict[str, WeightOrigin]:
    """Return the origins of linear layers over tokens: MatMul with the weight's transpose, and Add of a bias."""
    origins: dict[str, WeightOrigin] = {}
    for node in graph.nodes:
        if node.op_type != "MatMul" or node.input[1] not in graph.constants:
            continue
        total = graph.only_consumer(node.output[0])
        has_bias = (
            total is not None and total.op_type == "Add" and any(n in graph.constants for n in total.input)
        )
        operation = total.output[0] if has_bias and total is not None else node.output[0]
        # As hooks name a linear layer. A product with a parameter as it is keeps channels on the other axis.
        if operation.split("/")[-2:-1] == ["linear"]:
            weight = own_copy(graph, node, 1)
            origins[weight] = WeightOrigin(operation, "", "", np.ones(graph.constants[weight].shape[1]))
    return origins


def _output_axis(node: NodeProto) -> int:
    return 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1


def name_nodes(graph: Graph) -> None:
    """Name every node after its first output, so that runtimes report module paths."""
    for node in graph.nodes:
        node.name = node.output[0]


def _absorbs(graph: Graph, node: NodeProto) -> bool:
    if node.op_type not in ("Conv", "Gemm") or graph.only_consumer(node.output[0]) is None:
        return False
    if node.op_type == "Gemm" and (attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "transA", 0)):
        return False
    return node.input[1] in graph.constants and (len(node.input) < 3 or node.input[2] in graph.constants)


def own_copy(graph: Graph, node: NodeProto, index: int) -> str:
    """Give a node a constant of its own where others read the same one; return its name."""
    name = str(node.input[index])
    if name in graph.constants and len(graph.consumers[name]) > 1:
        copy = graph.fresh_name(f"{name}.copy")
        graph.constants[copy] = graph.constants[name]
        node.input[index] = copy
        graph.reindex()
        return copy
    return name


def _as_multiply_add(graph: Graph, node: NodeProto, factor: Float64, shift: Float64) -> None:
    rank = len(graph.shapes().get(node.input[0], ())) or 4
    shape = (1, -1) + (1,) * (rank - 2)
    # Not ".scale": that is what the scale of the quantized result is called.
    scale_name, shift_name = (graph.fresh_name(f"{node.output[0]}.{part}") for part in ("factor", "shift"))
    graph.constants[scale_name] = factor.astype(np.float32).reshape(shape)
    graph.constants[shift_name] = shift.astype(np.float32).reshape(shape)
    product = graph.fresh_name(f"{node.output[0]}.scaled")
    place = graph.nodes.index(node)
    graph.nodes[place : place + 1] = [
        helper.make_node("Mul", [node.input[0], scale_name], [product]),
        helper.make_node("Add", [product, shift_name], [node.output[0]]),
    ]
    graph.reindex()
