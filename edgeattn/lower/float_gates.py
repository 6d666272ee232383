"""Take gates out of INT8: their Q/DQ pairs go, and their weights become floats.

A gate works on pooled maps: it moves few bytes, and in TensorRT every INT8 convolution inside it costs a
kernel that scales and rounds its result, where a float one takes its activation along. Without the pairs each
tensor of the gate differs from the quantized one by at most half of its step, towards the float network; the
weights keep their quantized values. Where a pair's range stands for a ReLU or a clip that the export left
out, a clip takes its place. The product with the map stays between INT8 kernels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import NodeProto

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.gates import find_gates
from edgeattn.lower.patterns import clip_to_grid, dequantize_weight, dequantized_constant, remove_pair
from edgeattn.onnx_graph import Graph, is_clip

__all__ = ["FloatGates"]

_CONVOLUTIONS = frozenset({"Conv", "Gemm", "MatMul"})
_ACTIVATIONS = frozenset({"Sigmoid", "HardSigmoid", "HardSwish", "Relu", "Clip"})
"""Behind these a pair's range matters no more: they saturate, or clip themselves."""
_INT8_CHANNELS = 16
"""TensorRT's INT8 kernels take at least this many input channels."""


@dataclasses.dataclass(frozen=True)
class FloatGates(EveryGraph):
    """Remove the quantization inside gates."""

    name: str = "float-gates"

    def __call__(self, graph: Graph) -> bool:
        """Remove pairs that only gates write and read, and dequantize the weights of gates."""
        changed = False
        for quantize in _inner_pairs(graph):
            changed |= _remove(graph, quantize)
        if changed:
            graph.sort()
        for node in _gate_nodes(graph):
            if node.op_type in _CONVOLUTIONS:
                changed |= _dequantize_weight(graph, node)
        if changed:
            graph.reindex()
        return changed

    def ensures(self, graph: Graph) -> str:
        """Check that no gate is quantized inside."""
        left = _inner_pairs(graph)
        return f"{left[0].name!r} still rounds inside a gate" if left else ""


def _gate_nodes(graph: Graph) -> list[NodeProto]:
    """Return the nodes of all gates that are to be float."""
    shapes = graph.shapes()
    found: dict[int, NodeProto] = {}
    for gate in find_gates(graph):
        map_area = _area(shapes.get(gate.source, ()))
        for node in gate.nodes:
            if not _is_heavy(graph, node, shapes, map_area):
                found[id(node)] = node
    return list(found.values())


def _is_heavy(graph: Graph, node: NodeProto, shapes: dict[str, tuple[int, ...]], map_area: int) -> bool:
    """Return whether a node is worth INT8: a convolution of many channels over the whole map."""
    if node.op_type not in _CONVOLUTIONS or _area(shapes.get(node.output[0], ())) < map_area or map_area < 2:
        return False
    weight = graph.constants.get(node.input[1])
    if weight is None:
        constant = dequantized_constant(graph, node.input[1])
        weight = None if constant is None else constant.integers
    return weight is not None and weight.ndim == 4 and weight.shape[1] >= _INT8_CHANNELS


def _area(shape: tuple[int, ...]) -> int:
    return shape[2] * shape[3] if len(shape) == 4 else 1


def _inner_pairs(graph: Graph) -> list[NodeProto]:
    """Return the QuantizeLinear nodes between what gates write and what gates read."""
    gates = find_gates(graph)
    inner = {id(node) for node in _gate_nodes(graph)}
    products = {id(gate.product) for gate in gates}
    result = []
    for quantize in graph.nodes:
        if quantize.op_type != "QuantizeLinear":
            continue
        before = graph.producer.get(quantize.input[0])
        readers = [
            user
            for pair in graph.consumers.get(quantize.output[0], [])
            for user in graph.consumers.get(pair.output[0], [])
        ]
        if before is None or not readers:
            continue
        # A gated map that only another gate multiplies again is no map that is stored.
        between = id(before) in products and all(id(user) in products for user in readers)
        if between or (
            id(before) in inner and all(id(user) in inner or id(user) in products for user in readers)
        ):
            result.append(quantize)
    return result


def _remove(graph: Graph, quantize: NodeProto) -> bool:
    """Remove a pair, leaving behind a clip where the pair's range may stand for one."""
    name, pair = quantize.input[0], graph.consumers[quantize.output[0]][0]
    readers = graph.consumers.get(pair.output[0], [])
    may_clip = graph.producer[name].op_type in (*_CONVOLUTIONS, "Add")
    may_clip &= not all(user.op_type in _ACTIVATIONS for user in readers)
    if (may_clip or is_clip(quantize)) and graph.scalar(quantize.input[1]) is not None:
        clip_to_grid(graph, quantize)
    return remove_pair(graph, quantize)


def _dequantize_weight(graph: Graph, node: NodeProto) -> bool:
    constant = dequantized_constant(graph, node.input[1])
    if constant is None:
        return False
    weight = dequantize_weight(constant)
    name = graph.fresh_name(f"{constant.node.input[0].removesuffix('.quantized')}.float")
    graph.constants[name] = weight.astype(np.float32)
    node.input[1] = name
    return True
