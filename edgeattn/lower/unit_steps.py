"""Let INT8 convolutions compute in steps of their result: OpenVINO's kernels save a product for every value then.

A kernel turns its accumulator into real numbers (scale of input times scale of weight, then the bias), and these into
integers (divided by the scale of the result). With the second scale inside the weight's scale and the bias, the result's
scale is 1 and the second product is gone. Weights and activations keep their integers; only the QuantizeLinear behind the
convolution gets the scale 1, and what dequantizes its integers stays as it is. On processors with AVX512-VNNI that is 5 %
of MobileNetV2's latency.

Where scales of results are powers of two (`edgeattn.quant.exact_grids`) no bit changes; elsewhere real numbers move by
rounding errors of float32.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import NodeProto

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import Int8Product, has_movable_bias, int8_product
from edgeattn.onnx_graph import Graph

__all__ = ["UnitSteps"]


@dataclasses.dataclass(frozen=True)
class UnitSteps(EveryGraph):
    """Move the scale of quantized results into the weights and biases of convolutions and Gemms."""

    name: str = "unit-steps"

    def __call__(self, graph: Graph) -> bool:
        """Rescale every convolution whose result alone is quantized."""
        changed = False
        for node in list(graph.nodes):
            found = _scaled(graph, node)
            if found is not None:
                _rescale(graph, *found)
                changed = True
        return changed

    def ensures(self, graph: Graph) -> str:
        """Check that no result of a convolution is still divided."""
        for node in graph.nodes:
            if _scaled(graph, node) is not None:
                return f"the result of {node.name!r} is still quantized in other steps than 1"
        return ""


def _scaled(graph: Graph, node: NodeProto) -> tuple[Int8Product, list[NodeProto], NodeProto] | None:
    """Return an operation, the bounds behind it and the QuantizeLinear behind them, if its scale is one number, not 1."""
    product = int8_product(graph, node)
    if product is None or not has_movable_bias(graph, product):
        return None
    bounded: list[NodeProto] = []
    user = graph.only_consumer(node.output[0])
    while user is not None and _keeps_its_form(graph, user):
        bounded.append(user)
        user = graph.only_consumer(user.output[0])
    if user is None or user.op_type != "QuantizeLinear":
        return None
    scale = graph.scalar(user.input[1])
    return None if scale is None or scale == 1 or not scale > 0 else (product, bounded, user)


def _keeps_its_form(graph: Graph, node: NodeProto) -> bool:
    """Return whether ``f(k * x) == k * f(x)`` for k > 0, once bounds are multiplied as well."""
    if node.op_type == "Clip":
        # Bounds were attributes before opset 11.
        return not node.attribute and all(graph.scalar(name) is not None for name in node.input[1:] if name)
    return node.op_type in ("Relu", "LeakyRelu")


def _rescale(graph: Graph, product: Int8Product, bounded: list[NodeProto], quantize: NodeProto) -> None:
    step = float(graph.constants[quantize.input[1]].reshape(()))

    def divided(name: str) -> str:
        value = graph.constants[name]
        own = graph.fresh_name(f"{name}.in_steps")
        graph.constants[own] = (value.astype(np.float64) / step).astype(value.dtype)
        return own

    node, dequantize = product.node, product.weight.node
    own = graph.copy_node(dequantize, f"{dequantize.output[0]}.in_steps")
    own.input[1] = divided(dequantize.input[1])
    node.input[1] = own.output[0]
    if product.bias_name:
        node.input[2] = divided(product.bias_name)
    for bound in bounded:
        for index in range(1, len(bound.input)):
            if bound.input[index]:
                bound.input[index] = divided(bound.input[index])
    one = graph.fresh_name(f"{quantize.input[1]}.one")
    graph.constants[one] = np.ones_like(graph.constants[quantize.input[1]])
    quantize.input[1] = one
    graph.reindex()
