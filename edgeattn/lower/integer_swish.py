"""Let ONNX Runtime compute hard swishes in integers, as the product of a map with itself, clipped.

``hard_swish(x) = x * clip(x + 3, 0, 6) / 6``. On a grid of which 3 is n steps (`edgeattn.quant.swish_grids`), the second
factor is x's own integers, clipped to n steps around the zero point z, read with the zero point z - n and a sixth of the
step: no number is rounded on the way. ONNX Runtime has kernels for a clip of integers and for a product of two quantized
maps, none for a quantized hard swish. That one is four passes over floats four times the size: an INT8 PP-LCNet
is slower with it than the same network in FP32.

The product is rounded once, as before. Only a value that lies right between two steps may become the other one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import dequantize_of, quantize_behind
from edgeattn.onnx_graph import Graph
from edgeattn.quant.swish_grids import KNEE

__all__ = ["IntegerSwish"]

_ROUNDING = 2.0**-22
"""Of float32 scales, relative: how far 3 may be from a whole number of steps."""


@dataclasses.dataclass(frozen=True)
class IntegerSwish(EveryGraph):
    """Rewrite hard swishes between two Q/DQ pairs where 3 is a whole number of steps."""

    name: str = "integer-swish"

    def __call__(self, graph: Graph) -> bool:
        """Rewrite them."""
        found = [(node, grid) for node in graph.nodes if (grid := _whole_steps(graph, node)) is not None]
        for node, (dequantize, steps) in found:
            _rewrite(graph, node, dequantize, steps)
        if found:
            graph.reindex()
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that none is left."""
        left = [node.name for node in graph.nodes if _whole_steps(graph, node) is not None]
        return f"{left[0]!r} is still a hard swish of floats" if left else ""


def _whole_steps(graph: Graph, node: NodeProto) -> tuple[NodeProto, int] | None:
    """Return what dequantizes a hard swish's input, and how many of its steps 3 is."""
    if node.op_type != "HardSwish" or quantize_behind(graph, node.output[0]) is None:
        return None
    dequantize = dequantize_of(graph, node.input[0])
    if dequantize is None or len(dequantize.input) < 3:
        return None
    scale, zero_point = graph.scalar(dequantize.input[1]), graph.constant(dequantize.input[2])
    if scale is None or zero_point is None or zero_point.size != 1 or not scale > 0:
        return None
    steps = round(KNEE / scale)
    if abs(steps * scale - KNEE) > KNEE * _ROUNDING or zero_point.dtype not in (np.uint8, np.int8):
        return None
    # What stands for -3 has to be an integer of the type.
    lowest = int(zero_point.reshape(())) - steps
    return (dequantize, steps) if lowest >= np.iinfo(zero_point.dtype).min else None


def _rewrite(graph: Graph, node: NodeProto, dequantize: NodeProto, steps: int) -> None:
    scale, zero_point = (graph.constants[name].reshape(()) for name in dequantize.input[1:3])
    limits, middle = np.iinfo(zero_point.dtype), int(zero_point)
    stem = f"{node.output[0]}.gate"

    def constant(part: str, value: NDArray[Any]) -> str:
        name = graph.fresh_name(f"{stem}.{part}")
        graph.constants[name] = value
        return name

    added = []
    clipped = dequantize.input[0]
    if middle - steps > limits.min or middle + steps < limits.max:
        low = np.asarray(middle - steps, zero_point.dtype)
        high = np.asarray(min(middle + steps, limits.max), zero_point.dtype)
        source, clipped = clipped, graph.fresh_name(f"{stem}.clipped")
        bounds = [constant("low", low), constant("high", high)]
        added.append(helper.make_node("Clip", [source, *bounds], [clipped], clipped))
    sixth = constant("scale", (scale.astype(np.float64) / (2 * KNEE)).astype(np.float32))
    lowest = constant("zero_point", np.asarray(middle - steps, zero_point.dtype))
    gate = graph.fresh_name(stem)
    added += [
        helper.make_node("DequantizeLinear", [clipped, sixth, lowest], [gate], gate),
        helper.make_node("Mul", [node.input[0], gate], list(node.output), node.name),
    ]
    graph.replace(node, *added)
