"""Look-ups that several passes share: what lies behind a DequantizeLinear or a QuantizeLinear."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from edgeattn.onnx_graph import Graph, attribute

__all__ = [
    "Int8Product",
    "QuantizedConstant",
    "clip_to_grid",
    "dequantize_of",
    "dequantize_weight",
    "dequantized_constant",
    "has_movable_bias",
    "int8_product",
    "power_of_two_step",
    "quantize_behind",
    "remove_pair",
    "same_parameters",
]


@dataclasses.dataclass(frozen=True)
class QuantizedConstant:
    """An integer constant and what its DequantizeLinear multiplies it with.

    Attributes:
        integers: The stored values.
        scale: One value, or one for each slice.
        zero_point: Same shape as `scale`.
        node: The DequantizeLinear.
    """

    integers: NDArray[Any]
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    node: NodeProto


def dequantize_of(graph: Graph, name: str) -> NodeProto | None:
    """Return the DequantizeLinear that writes a tensor."""
    node = graph.producer.get(name)
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def dequantized_constant(graph: Graph, name: str) -> QuantizedConstant | None:
    """Return the constant that a DequantizeLinear turns into the tensor `name`."""
    node = dequantize_of(graph, name)
    if node is None:
        return None
    integers, scale = graph.constant(node.input[0]), graph.constant(node.input[1])
    if integers is None or scale is None:
        return None
    zero_point = (
        graph.constant(node.input[2]) if len(node.input) > 2 else np.zeros(scale.shape, integers.dtype)
    )
    return None if zero_point is None else QuantizedConstant(integers, scale, zero_point, node)


def dequantize_weight(constant: QuantizedConstant) -> NDArray[np.float64]:
    """Return the real values of a quantized constant."""
    axis = int(attribute(constant.node, "axis", 1))
    per_slice = constant.scale.size > 1
    shape = [-1 if dim == axis and per_slice else 1 for dim in range(constant.integers.ndim)]
    steps = constant.integers.astype(np.float64) - constant.zero_point.astype(np.float64).reshape(shape)
    return steps * constant.scale.astype(np.float64).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Int8Product:
    """A convolution or Gemm of a dequantized tensor with a dequantized constant.

    Attributes:
        node: The operation.
        source: The DequantizeLinear of what it reads.
        weight: The constant.
        summed_axes: The weight's axes that are summed over.
    """

    node: NodeProto
    source: NodeProto
    weight: QuantizedConstant
    summed_axes: tuple[int, ...]

    @property
    def bias_name(self) -> str:
        """The bias's name; empty without one."""
        return self.node.input[2] if len(self.node.input) > 2 else ""


def int8_product(graph: Graph, node: NodeProto) -> Int8Product | None:
    """Return what an INT8 operation computes; None if it is none."""
    if node.op_type not in ("Conv", "Gemm") or len(node.input) < 2:
        return None
    if any(attribute(node, name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return None
    source, weight = dequantize_of(graph, node.input[0]), dequantized_constant(graph, node.input[1])
    if source is None or weight is None or weight.integers.dtype not in (np.int8, np.uint8):
        return None
    is_transposed = node.op_type == "Conv" or bool(attribute(node, "transB", 0))
    summed = tuple(range(1, weight.integers.ndim)) if is_transposed else (0,)
    return Int8Product(node, source, weight, summed)


def has_movable_bias(graph: Graph, product: Int8Product) -> bool:
    """Return whether a product's bias can be rewritten: a float constant with a value for each channel, or none."""
    bias = graph.constant(product.bias_name)
    return not product.bias_name or (bias is not None and bias.ndim == 1)


def quantize_behind(graph: Graph, name: str) -> NodeProto | None:
    """Return the QuantizeLinear that alone reads a tensor."""
    user = graph.only_consumer(name)
    return user if user is not None and user.op_type == "QuantizeLinear" else None


def same_parameters(graph: Graph, one: NodeProto, other: NodeProto) -> bool:
    """Return whether two Q/DQ nodes have the same constant scale and zero point."""
    for index in (1, 2):
        left, right = (
            graph.constant(node.input[index]) if len(node.input) > index else np.zeros((), np.uint8)
            for node in (one, other)
        )
        if left is None or right is None or left.dtype != right.dtype or not np.array_equal(left, right):
            return False
    return True


def power_of_two_step(graph: Graph, node: NodeProto | None) -> float | None:
    """Return the scale of a Q/DQ node if it is one for all and a power of two."""
    scale = graph.constant(node.input[1]) if node is not None else None
    if scale is None or scale.size != 1:
        return None
    value = float(scale.reshape(()))
    return value if value > 0 and math.frexp(value)[0] == 0.5 else None


def clip_to_grid(graph: Graph, quantize: NodeProto) -> None:
    """Put a clip to the ends of its grid before a QuantizeLinear of one scale: what is left of its pair when that goes."""
    scale, zero_point = graph.constants[quantize.input[1]], graph.constant(quantize.input[2])
    limits = np.iinfo(np.int8 if zero_point is None else zero_point.dtype)
    offset = 0 if zero_point is None else int(zero_point.reshape(()))
    source = quantize.input[0]
    result = graph.fresh_name(f"{source}.clipped")
    bounds = []
    for part, end in (("low", limits.min), ("high", limits.max)):
        bounds.append(graph.fresh_name(f"{result}.{part}"))
        graph.constants[bounds[-1]] = np.asarray((end - offset) * float(scale.reshape(())), np.float32)
    graph.add([helper.make_node("Clip", [source, *bounds], [result], result)])
    graph.reroute(source, result, [quantize])


def remove_pair(graph: Graph, quantize: NodeProto) -> bool:
    """Let the readers of a Q/DQ pair read what was quantized; return whether that could be done."""
    users = list(graph.consumers.get(quantize.output[0], []))
    if not users or any(user.op_type != "DequantizeLinear" for user in users):
        return False
    if any(user.output[0] in graph.output_names for user in users):
        return False
    gone = [id(quantize), *map(id, users)]
    for user in users:
        graph.replace_input(user.output[0], quantize.input[0])
    graph.nodes = [node for node in graph.nodes if id(node) not in gone]
    graph.reindex()
    return True
