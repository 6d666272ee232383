"""What a page needs to draw where the network looks: a few nodes that are appended to the model.

An ONNX file is a protobuf message, and two serialized messages one after the other parse as one whose
repeated fields are joined. So a *part*, which holds nothing but further nodes and outputs, turns the model's
own bytes into a model that also computes the maps: no second copy of the weights travels.

Two kinds of maps, as far as the graph has what they need:

* evidence: the classifier's weights applied to the last feature map before its pooling, a class activation
  map (arXiv 1512.04150). Averaged over all places and with the classifier's bias added, it is the logit.
* attention: for each attention module with gates that differ by place (Coordinate, Triplet, CBAM), the share
  of the signal, summed over channels, that its gates let through at each place.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeattn.onnx_graph import Graph, attribute

__all__ = ["EVIDENCE", "HeatPart", "make_heat_part"]

EVIDENCE = "heat.evidence"
"""Output of shape (1, classes, h, w)."""

_ATTENTION = "heat.attention"
_PASSES_ON = frozenset({"QuantizeLinear", "DequantizeLinear", "Flatten", "Reshape", "Squeeze", "Identity"})
_KEEPS_GATE = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "Expand", "Reshape", "Transpose", "Identity", "Add", "Mul"}
)
_GATES = frozenset({"Sigmoid", "HardSigmoid"})

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class HeatPart:
    """Bytes to append to the model's, and the outputs that they add.

    Attributes:
        data: A serialized `ModelProto` without a version; empty messages in it merge into the model's.
        evidence: Name of the output (1, classes, h, w), or None.
        attention: Names of the outputs (1, 1, h, w), one for each module, in the order of the graph.
    """

    data: bytes
    evidence: str | None
    attention: tuple[str, ...]


def make_heat_part(model: ModelProto) -> HeatPart | None:
    """Return what turns `model` into one that computes maps, or None where neither kind is possible.

    Args:
        model: A classifier with one output, fp32 or QDQ, of fixed shapes.
    """
    graph = Graph(model)
    shapes = graph.shapes()
    part = _Part()
    evidence = _add_evidence(graph, shapes, part)
    attention = _add_attention(graph, shapes, part)
    if evidence is None and not attention:
        return None
    return HeatPart(part.to_bytes(), evidence, tuple(attention))


class _Part:
    """Nodes, constants and outputs that are added to a graph; no name of theirs can be one of the graph's."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []
        self._outputs: list[tuple[str, tuple[int, ...]]] = []

    def node(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: object) -> str:
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def mean_of_channels(self, source: str, name: str, opset: int) -> str:
        if opset < 18:
            return self.node("ReduceMean", [source], name, axes=[1], keepdims=1)
        axes = self.constant(f"{name}.axes", np.array([1], np.int64))
        return self.node("ReduceMean", [source, axes], name, keepdims=1)

    def output(self, name: str, shape: tuple[int, ...]) -> str:
        self._outputs.append((name, shape))
        return name

    def to_bytes(self) -> bytes:
        part = ModelProto()
        part.graph.node.extend(self._nodes)
        part.graph.initializer.extend(self._constants)
        part.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in self._outputs
        )
        return part.SerializeToString()


def _add_evidence(graph: Graph, shapes: Shapes, part: _Part) -> str | None:
    gemm = graph.producer.get(graph.output_names[0])
    if gemm is None or gemm.op_type not in ("Gemm", "MatMul"):
        return None
    if attribute(gemm, "alpha", 1.0) != 1.0 or attribute(gemm, "transA", 0):
        return None
    features = _before_pool(graph, shapes, gemm.input[0])
    weight_shape = shapes.get(gemm.input[1])
    if features is None or weight_shape is None:
        return None
    _, channels, height, width = shapes[features]
    by_class = bool(attribute(gemm, "transB", 0))
    classes = weight_shape[0] if by_class else weight_shape[1]
    if weight_shape[1 if by_class else 0] != channels:
        return None
    weight = gemm.input[1]
    if not by_class:
        weight = part.node("Transpose", [weight], f"{EVIDENCE}.weight", perm=[1, 0])
    flat = part.constant(f"{EVIDENCE}.flat", np.array([channels, height * width], np.int64))
    shape = part.constant(f"{EVIDENCE}.shape", np.array([1, classes, height, width], np.int64))
    places = part.node("Reshape", [features, flat], f"{EVIDENCE}.places")
    product = part.node("MatMul", [weight, places], f"{EVIDENCE}.product")
    return part.output(
        part.node("Reshape", [product, shape], EVIDENCE),
        (1, classes, height, width),
    )


def _before_pool(graph: Graph, shapes: Shapes, name: str) -> str | None:
    """Return the feature map whose mean over all places `name` is."""
    node = graph.producer.get(name)
    while node is not None and node.op_type in _PASSES_ON:
        node = graph.producer.get(node.input[0])
    if node is None or not node.input:
        return None
    before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
    if len(before) != 4 or math.prod(before[2:]) < 2 or math.prod(after) != before[1]:
        return None
    # A pool that became a depthwise convolution is a mean as well; a product with weights would not be.
    pools = ("GlobalAveragePool", "AveragePool", "ReduceMean")
    return node.input[0] if node.op_type in pools or _is_mean(graph, shapes, node) else None


def _is_mean(graph: Graph, shapes: Shapes, node: NodeProto) -> bool:
    if node.op_type != "Conv":
        return False
    dequantize = graph.producer.get(node.input[1])
    weight = graph.constant(node.input[1] if dequantize is None else dequantize.input[0])
    if weight is None or attribute(node, "group", 1) != shapes[node.input[0]][1]:
        return False
    return bool(np.all(weight == weight.reshape(-1)[0]))


def _add_attention(graph: Graph, shapes: Shapes, part: _Part) -> list[str]:
    outputs = []
    for number, (before, after) in enumerate(_gated_maps(graph, shapes)):
        _, _, height, width = shapes[before]
        stem = f"{_ATTENTION}.{number}"
        sums = []
        for role, tensor in (("before", before), ("after", after)):
            size = part.node("Abs", [tensor], f"{stem}.{role}.abs")
            sums.append(part.mean_of_channels(size, f"{stem}.{role}", graph.opset))
        floor = part.constant(f"{stem}.floor", np.float32(1e-6))
        divisor = part.node("Add", [sums[0], floor], f"{stem}.divisor")
        ratio = part.node("Div", [sums[1], divisor], stem)
        outputs.append(part.output(ratio, (1, 1, height, width)))
    return outputs


def _gated_maps(graph: Graph, shapes: Shapes) -> list[tuple[str, str]]:
    """Return (map before the gates, map after them) of every module whose gates differ by place."""
    gates = _gate_tensors(graph, shapes)
    applied: dict[str, tuple[str, str]] = {}  # result of a multiplication by a gate -> (before, after)
    for node in graph.nodes:
        maps = [name for name in node.input if name not in gates and name not in graph.constants]
        if node.op_type != "Mul" or len(maps) != 1 or len(node.input) - len(maps) != 1:
            continue
        gate = next(name for name in node.input if name != maps[0])
        result, source = node.output[0], _unwrapped(graph, maps[0])
        if gate not in gates or len(shapes.get(result, ())) != 4 or shapes.get(maps[0]) != shapes[result]:
            continue
        # The second gate of a module multiplies what the first one made: one module, one map.
        before, _ = applied.pop(source, (maps[0], ""))
        applied[result] = (before, result)
    return list(applied.values())


def _gate_tensors(graph: Graph, shapes: Shapes) -> set[str]:
    """Return every tensor made of gates alone, of those gates whose values differ by place."""
    gates: set[str] = set()
    for node in graph.nodes:
        if node.op_type in _GATES:
            shape = shapes.get(node.output[0], ())
            if len(shape) == 4 and max(shape[2:]) > 1:
                gates.add(node.output[0])
        elif node.op_type in _KEEPS_GATE and node.input:
            moving = [name for name in node.input if name not in graph.constants]
            if moving and all(name in gates for name in moving):
                gates.update(node.output)
    return gates


def _unwrapped(graph: Graph, name: str) -> str:
    """Return the tensor behind a pair of QuantizeLinear and DequantizeLinear."""
    node = graph.producer.get(name)
    while node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        name = node.input[0]
        node = graph.producer.get(name)
    return name
