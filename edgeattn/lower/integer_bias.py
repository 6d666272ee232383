"""Spell biases of INT8 convolutions and Gemms as int32, as their kernels add them.

ONNX Runtime makes an integer Gemm only if every input comes from a DequantizeLinear, the bias included;
otherwise the whole weight matrix is dequantized at every inference. The scale of a bias is that of the
accumulator (input scale times weight scale), so the value moves by at most half a step of an int32
accumulator: less than 1/2 of 1/(127 * 255) of a channel's range, and what integer kernels do anyway.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import dequantized_constant, int8_product
from edgeattn.onnx_graph import Graph

__all__ = ["IntegerBias"]

# The integer that a bias may become, with room for the products that are added to it.
_LARGEST = 2**30


@dataclasses.dataclass(frozen=True)
class IntegerBias(EveryGraph):
    """Quantize biases to int32.

    Attributes:
        add_missing: Give operations without a bias one of zeros: some kernels want three inputs.
    """

    name: str = "integer-bias"

    def __call__(self, graph: Graph) -> bool:
        """Rewrite every float bias that fits."""
        changed = False
        for node in list(graph.nodes):
            step = _accumulator_step(graph, node)
            if step is not None and len(node.input) > 2 and node.input[2] in graph.constants:
                changed |= _rewrite(graph, node, step)
        if changed:
            graph.reindex()
        return changed

    def ensures(self, graph: Graph) -> str:
        """Check that every int32 constant behind a DequantizeLinear has the step of its accumulator."""
        for node in graph.nodes:
            if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
                continue
            bias = dequantized_constant(graph, node.input[2])
            if bias is None or bias.integers.dtype != np.int32:
                continue
            step = _accumulator_step(graph, node)
            if step is None or not np.array_equal(step, bias.scale.reshape(-1)):
                return f"the bias of {node.name!r} has not the scale of its accumulator"
        return ""


def _accumulator_step(graph: Graph, node: NodeProto) -> NDArray[np.float32] | None:
    """Return the real value of one accumulator step per output channel, for an INT8 operation."""
    product = int8_product(graph, node)
    scale = graph.scalar(product.source.input[1]) if product is not None else None
    if product is None or scale is None:
        return None
    step: NDArray[np.float32] = (np.float32(scale) * product.weight.scale.reshape(-1)).astype(np.float32)
    return step


def _rewrite(graph: Graph, node: NodeProto, step: NDArray[np.float32]) -> bool:
    bias: NDArray[Any] = graph.constants[node.input[2]]
    steps = np.rint(bias.astype(np.float64) / step.astype(np.float64))
    if bias.ndim != 1 or step.size not in (1, bias.size) or not np.all(np.abs(steps) <= _LARGEST):
        return False
    stem = graph.fresh_name(f"{node.input[2]}.int32.{node.output[0]}")
    names = {part: graph.fresh_name(f"{stem}.{part}") for part in ("quantized", "scale", "zero_point")}
    graph.constants[names["quantized"]] = steps.astype(np.int32)
    graph.constants[names["scale"]] = step if step.size > 1 else step.reshape(())
    graph.constants[names["zero_point"]] = np.zeros(graph.constants[names["scale"]].shape, np.int32)
    result = graph.fresh_name(f"{stem}.dequantized")
    dequantize = helper.make_node("DequantizeLinear", list(names.values()), [result], result)
    if step.size > 1:
        dequantize.attribute.append(helper.make_attribute("axis", 0))
    graph.nodes.insert(0, dequantize)
    node.input[2] = result
    return True
