"""Where a canonical graph is quantized.

A region is closed: every activation that an INT8 operation reads or writes is quantized, so that no
runtime is left with a float island between two INT8 kernels. An activation function that a runtime
computes inside the convolution's kernel (ReLU, clip, h-swish, ...) has no quantization before it.
Operations that only move or select values keep the range of what they read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from onnx import ModelProto, NodeProto

from edgeattn.onnx_graph import Graph, attribute
from edgeattn.quant.channel_gates import channel_gates
from edgeattn.quant.config import GatePolicy
from edgeattn.quant.float_nodes import (
    BOUNDED_OUTPUT,
    answering_nodes,
    coordinate_nodes,
    divisor_nodes,
    masked_nodes,
)
from edgeattn.quant.pixel_input import pixel_nodes, pixel_ranges

__all__ = ["POOLS", "GateRegion", "Placement", "place_quantizers"]

INT8_OPS = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "Add",
        "Mul",
        "AveragePool",
        "GlobalAveragePool",
        "ReduceMean",
        "Concat",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Tanh",
        "Softmax",
        "Sub",
    ]
)
SAME_RANGE_OPS = frozenset(
    [
        "Flatten",
        "Reshape",
        "Transpose",
        "MaxPool",
        "GlobalMaxPool",
        "ReduceMax",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Split",
        "Expand",
        "Resize",
    ]
)
POOLS = frozenset(["AveragePool", "GlobalAveragePool", "ReduceMean"])
"""Operations whose result is a mean."""
FUSED_ACTIVATIONS = frozenset(["Relu", "Clip"])


@dataclasses.dataclass(frozen=True)
class GateRegion:
    """The operations of one attention module: all tensors whose name starts with `prefix`."""

    prefix: str
    policy: GatePolicy

    def holds(self, tensor: str) -> bool:
        """Return whether the operation that wrote `tensor` belongs to the module."""
        return tensor.startswith(f"{self.prefix}/")


@dataclasses.dataclass(frozen=True)
class Placement:
    """Which tensors are quantized, and how their ranges depend on each other.

    Attributes:
        activations: Tensors with a range of their own.
        same_range: Tensor -> the tensor whose range it has.
        fixed: Tensor -> (low, high) known without calibration.
        addends: Convolutions' branches of residual adds.
        weights: Constants that become int8, with the axis of their output channels.
    """

    activations: tuple[str, ...]
    same_range: dict[str, str]
    fixed: dict[str, tuple[float, float]]
    addends: frozenset[str]
    weights: dict[str, int]


def place_quantizers(model: ModelProto, gates: Sequence[GateRegion] = ()) -> Placement:
    """Decide which tensors of a canonical fp32 graph are quantized.

    Args:
        model: Canonical fp32 ONNX.
        gates: Attention modules, by the module's path, with the policy for each.
    """
    graph = Graph(model)
    shapes = graph.shapes()
    floats = _float_nodes(graph, gates, shapes)
    scores = {name for node in answering_nodes(graph) for name in node.input if _is_score(graph, name)}
    int8 = [node for node in graph.nodes if node.op_type in INT8_OPS and id(node) not in floats]
    int8 = [node for node in int8 if _is_float_math(graph, node)]
    weights: dict[str, int] = {}
    wanted: dict[str, None] = {}
    for node in int8:
        _add_weight(graph, node, weights)
        for name in (*node.input, *node.output):
            if name and name not in graph.constants:
                wanted[name] = None
    same_range: dict[str, str] = {}
    for node in graph.nodes:
        _spread_same_range(graph, node, wanted, same_range)
        _join_range(graph, node, wanted, same_range)
    chosen = [
        name
        for name in wanted
        if not _is_fused_away(graph, name)
        and not _is_inside_operation(graph, name)
        and name not in scores
        and name not in graph.output_names
    ]
    chosen = _after_activation(graph, chosen, floats)
    order = {
        name: i for i, name in enumerate((*graph.input_names, *(o for n in graph.nodes for o in n.output)))
    }
    chosen.sort(key=lambda name: order[name])
    fixed = {
        name: BOUNDED_OUTPUT[graph.producer[name].op_type]
        for name in chosen
        if name in graph.producer
        and graph.producer[name].op_type in BOUNDED_OUTPUT
        and _policy_of(name, gates) in ("fixed", "float")
    }
    fixed |= {item.gate: (0.0, 1.0) for item in channel_gates(graph)}
    fixed |= pixel_ranges(graph)
    own = tuple(name for name in chosen if name not in same_range)
    return Placement(
        own,
        {name: _root(name, same_range) for name in chosen if name in same_range},
        fixed,
        frozenset(name for name in own if _is_addend(graph, name)),
        weights,
    )


def _is_score(graph: Graph, name: str) -> bool:
    """Whether nothing but the answer is made of a tensor, and no kernel needs it as integers.

    ONNX Runtime's linear layers give float as well, its convolutions do not.
    """
    writer = graph.producer.get(name)
    return (
        graph.only_consumer(name) is not None
        and writer is not None
        and writer.op_type not in ("Conv", "ConvTranspose")
    )


def _policy_of(name: str, gates: Iterable[GateRegion]) -> GatePolicy | None:
    return next((gate.policy for gate in gates if gate.holds(name)), None)


def _float_nodes(graph: Graph, gates: Sequence[GateRegion], shapes: dict[str, tuple[int, ...]]) -> set[int]:
    """Return the nodes that a float gate keeps in float.

    What works on pooled maps stays float, and the scores of a softmax: the product with the full map is INT8
    under every policy, because a float product would cost more than the whole gate.
    """
    kept = (
        *coordinate_nodes(graph),
        *divisor_nodes(graph),
        *masked_nodes(graph),
        *pixel_nodes(graph),
        *answering_nodes(graph),
    )
    result = {id(node) for node in kept}
    for gate in gates:
        if gate.policy != "float":
            continue
        nodes = [node for node in graph.nodes if gate.holds(node.output[0])]
        largest = max((_area(shapes.get(node.output[0], ())) for node in nodes), default=0)
        for node in nodes:
            if _area(shapes.get(node.output[0], ())) < largest:
                result.add(id(node))
        result |= _score_nodes(graph, gate)
    return result


_SCORES = frozenset({"Add", "Sub", "Mul", "Conv"})


def _score_nodes(graph: Graph, gate: GateRegion) -> set[int]:
    """Return a gate's softmaxes, and the sums, products and convolutions that they read.

    A softmax turns an error of its scores into a factor. Where scores are squared distances they span
    hundreds, and a step of their 8 bits is a factor of two.
    """
    result: set[int] = set()
    waiting = [node for node in graph.nodes if node.op_type == "Softmax" and gate.holds(node.output[0])]
    while waiting:
        node = waiting.pop()
        if id(node) in result:
            continue
        result.add(id(node))
        read = (graph.producer.get(name) for name in node.input)
        waiting += [n for n in read if n is not None and n.op_type in _SCORES and gate.holds(n.output[0])]
    return result


def _is_inside_operation(graph: Graph, name: str) -> bool:
    """Return whether a tensor lies between product and sum of a batch norm or of a linear layer over tokens, or in GELU.

    Torch computes both at once, so it has no such tensor to quantize in training.
    """
    product, total = graph.producer.get(name), graph.only_consumer(name)
    if total is not None and total.op_type == "Erf":
        return True
    if product is not None and product.op_type == "Add":
        erf = graph.producer.get(product.input[0])
        return erf is not None and erf.op_type == "Erf"
    return (
        product is not None
        and product.op_type in ("Mul", "MatMul")
        and total is not None
        and total.op_type == "Add"
        and all(any(item in graph.constants for item in node.input) for node in (product, total))
    )


def _area(shape: tuple[int, ...]) -> int:
    return shape[2] * shape[3] if len(shape) == 4 else 1


def _is_float_math(graph: Graph, node: NodeProto) -> bool:
    """Exclude products and sums with a scalar constant: a quantized scalar fails in TensorRT."""
    if node.op_type in ("Add", "Mul", "Sub", "Div"):
        return all(graph.scalar(name) is None for name in node.input)
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        return True
    return bool(node.output)


def _add_weight(graph: Graph, node: NodeProto, weights: dict[str, int]) -> None:
    if node.op_type in ("Conv", "Gemm", "MatMul") and len(node.input) > 1:
        name = node.input[1]
        if name in graph.constants and graph.constants[name].ndim >= 2:
            transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
            weights[name] = 0 if node.op_type == "Conv" or transposed else 1


def _spread_same_range(
    graph: Graph, node: NodeProto, wanted: dict[str, None], same_range: dict[str, str]
) -> None:
    """Give a value-moving operation behind a quantized tensor that tensor's range."""
    if node.op_type not in SAME_RANGE_OPS or node.input[0] in graph.constants:
        return
    if node.op_type == "Resize" and attribute(node, "mode", "nearest") == "cubic":
        return  # it overshoots
    if node.input[0] in wanted or any(name in wanted for name in node.output):
        wanted[node.input[0]] = None
        for name in node.output:
            wanted[name] = None
            same_range[name] = node.input[0]


def _join_range(graph: Graph, node: NodeProto, wanted: dict[str, None], same_range: dict[str, str]) -> None:
    """Give maxima and means of one tensor that are joined that tensor's range, and their join, too.

    Both lie in it. With one range for all, joining moves bytes; with three, each part is quantized twice.
    """
    if node.op_type != "Concat" or node.output[0] not in wanted:
        return
    sources = [_moved_from(graph, name)[0] for name in node.input]
    roots = {_root(name, same_range) for name in sources if name in same_range}
    if len(roots) != 1:
        return
    root = next(iter(roots))
    means = []
    for name in node.input:
        source, path = _moved_from(graph, name)
        if _root(source, same_range) == root:
            continue
        if not _is_mean_of(graph, source, root, same_range):
            return
        means += [source, *path]
    for name in (*means, node.output[0]):
        wanted[name] = None
        same_range[name] = root


def _moved_from(graph: Graph, name: str) -> tuple[str, list[str]]:
    """Return the tensor that only moving operations turn into `name`, and what lies between."""
    path: list[str] = []
    while True:
        node = graph.producer.get(name)
        if node is None or node.op_type not in ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"):
            return name, path
        path.append(name)
        name = node.input[0]


def _is_mean_of(graph: Graph, name: str, root: str, same_range: dict[str, str]) -> bool:
    node = graph.producer.get(name)
    if node is None or _root(node.input[0], same_range) != root or graph.only_consumer(name) is None:
        return False
    if node.op_type == "Conv" and len(node.input) == 2 and node.input[1] in graph.constants:
        weight = graph.constants[node.input[1]]
        taps = weight[0].size
        # Weights 1/n: the mean over channels, spelled as a convolution.
        return bool(np.all(np.abs(weight * taps - 1) < 1e-5))
    return node.op_type in POOLS


def _is_fused_away(graph: Graph, name: str) -> bool:
    """A tensor that only a fused activation reads is never stored by an INT8 kernel."""
    user = graph.only_consumer(name)
    if user is None or name not in graph.producer:
        return False
    return user.op_type in FUSED_ACTIVATIONS or _is_scaling(graph, user)


def _is_scaling(graph: Graph, node: NodeProto) -> bool:
    """A product with a positive scalar is a change of scale: quantizing before and behind it is one too many."""
    return node.op_type == "Mul" and any((graph.scalar(name) or 0.0) > 0.0 for name in node.input)


def _after_activation(graph: Graph, chosen: list[str], floats: set[int]) -> list[str]:
    """Add the results of fused activations behind INT8 operations.

    Not behind float ones: a pair there would be noise, and ONNX Runtime quantizes a float weight by itself where its
    convolution lies between integers.
    """
    result = dict.fromkeys(chosen)
    for node in graph.nodes:
        if node.op_type in FUSED_ACTIVATIONS and node.output[0] not in graph.output_names:
            source = graph.producer.get(node.input[0])
            if source is None or id(source) in floats:
                continue
            if node.input[0] in result or source.op_type in ("Conv", "Gemm", "Add"):
                result[node.output[0]] = None
    return list(result)


def _root(name: str, same_range: dict[str, str]) -> str:
    while name in same_range:
        name = same_range[name]
    return name


def _is_addend(graph: Graph, name: str) -> bool:
    producer, user = graph.producer.get(name), graph.only_consumer(name)
    if producer is None or producer.op_type != "Conv" or user is None or user.op_type != "Add":
        return False
    if name in user.input and any(other in graph.constants for other in user.input):
        return False
    # Of two convolutions that only meet here, the first keeps its result unquantized. One that others read,
    # too (the first block of a stage), is stored in any case: the branch is the other.
    others = [other for other in user.input if other != name and graph.only_consumer(other) is not None]
    producers = [graph.producer.get(other) for other in others]
    both = [item for item in producers if item is not None and item.op_type == "Conv"]
    return not both or user.input[0] == name
