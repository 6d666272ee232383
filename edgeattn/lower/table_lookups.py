"""Look the activations of small integer tensors up, instead of computing them in float.

A function of one 8-bit tensor has 256 values. ONNX Runtime has a table for a few functions (QLinearSigmoid); for the
others it dequantizes, computes (h-swish in two kernels) and quantizes again. In a gate each of these kernels works on a
few hundred numbers and takes most of its time to start: Cast and Gather are two kernels where there were four. On
MobileNetV2 1.0 with Coordinate Attention that is about 3 % of the inference. The table holds what ONNX Runtime's own
kernels compute in float32.

Both kernels visit numbers one by one, so maps stay as they are. The lookup is written between two transposes, which
ONNX Runtime's own change of layout cancels.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edgeattn.errors import ModelError
from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import dequantize_of, quantize_behind
from edgeattn.onnx_graph import Array, Graph
from edgeattn.onnx_node import evaluate_node

__all__ = ["TableLookups"]

_FUNCTIONS = frozenset(
    {"Celu", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Mish", "Selu", "Softplus", "Softsign", "Tanh"}
)
_INTEGERS = (np.dtype(np.uint8), np.dtype(np.int8))


@dataclasses.dataclass(frozen=True)
class TableLookups(EveryGraph):
    """Replace DequantizeLinear, a function and QuantizeLinear by a lookup.

    Attributes:
        max_elements: Of the tensors that are looked up.
    """

    name: str = "table-lookups"
    max_elements: int = 4096

    def __call__(self, graph: Graph) -> bool:
        """Replace every small activation that ONNX Runtime has no table for."""
        found = self._activations(graph)
        for activation in found:
            _look_up(graph, activation)
        if found:
            graph.reindex()
            graph.remove_unused()
            graph.sort()
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that none is left."""
        left = self._activations(graph)
        return f"{left[0].function.name!r} is still computed in float" if left else ""

    def _activations(self, graph: Graph) -> list[_Activation]:
        nodes = [node for node in graph.nodes if node.op_type in _FUNCTIONS]
        shapes = graph.shapes() if nodes else {}
        found = []
        for node in nodes:
            shape = shapes.get(node.input[0])
            if shape is None or math.prod(shape) > self.max_elements:
                continue
            activation = _activation(graph, node, len(shape))
            if activation is not None:
                found.append(activation)
        return found


@dataclasses.dataclass(frozen=True)
class _Activation:
    """A function between two 8-bit grids.

    Attributes:
        source: Name of the integers that it reads.
        function: The node in float.
        quantize: What alone reads its result.
        table: (256,), the integers of the result by the low eight bits of those of the source.
        rank: Of the tensors.
    """

    source: str
    function: NodeProto
    quantize: NodeProto
    table: Array
    rank: int


def _activation(graph: Graph, function: NodeProto, rank: int) -> _Activation | None:
    dequantize, quantize = dequantize_of(graph, function.input[0]), quantize_behind(graph, function.output[0])
    if dequantize is None or quantize is None or graph.only_consumer(function.input[0]) is not function:
        return None
    before, behind = _grid(graph, dequantize), _grid(graph, quantize)
    if before is None or behind is None:
        return None
    (scale, zero_point), (new_scale, new_zero_point) = before, behind
    bits = np.arange(256, dtype=np.uint8)
    steps = bits.view(zero_point.dtype).astype(np.float32) - zero_point.astype(np.float32)
    try:
        values = evaluate_node(function, {function.input[0]: steps * scale}, graph.opset)[0]
    except ModelError:
        return None
    limits = np.iinfo(new_zero_point.dtype)
    rounded = np.rint(values.astype(np.float32) / new_scale) + new_zero_point.astype(np.float32)
    if not np.isfinite(rounded).all():
        return None
    table = np.clip(rounded, limits.min, limits.max).astype(new_zero_point.dtype)
    return _Activation(dequantize.input[0], function, quantize, table, rank)


def _grid(graph: Graph, node: NodeProto) -> tuple[Array, Array] | None:
    """Return the constant scale and zero point of a Q/DQ node with one 8-bit grid for all values."""
    parameters = [graph.constant(name) for name in node.input[1:]]
    if len(parameters) != 2 or parameters[0] is None or parameters[1] is None:
        return None
    scale, zero_point = parameters[0].reshape(-1), parameters[1].reshape(-1)
    if scale.size != 1 or zero_point.size != 1 or zero_point.dtype not in _INTEGERS:
        return None
    return (scale[0], zero_point[0]) if scale.dtype == np.float32 and scale[0] > 0 else None


def _look_up(graph: Graph, activation: _Activation) -> None:
    stem = graph.fresh_name(f"{activation.function.output[0]}.looked_up")
    table = f"{stem}.table"
    graph.constants[table] = activation.table
    source, result = activation.source, activation.quantize.output[0]
    nodes = []
    if activation.rank == 4:
        nodes.append(
            helper.make_node("Transpose", [source], [f"{stem}.last"], f"{stem}.last", perm=[0, 2, 3, 1])
        )
        source = f"{stem}.last"
    looked_up = stem if activation.rank == 4 else result
    # Of signed integers the negative ones are counted from the end, where the table has them.
    nodes += [
        helper.make_node("Cast", [source], [f"{stem}.index"], f"{stem}.index", to=TensorProto.INT32),
        helper.make_node("Gather", [table, f"{stem}.index"], [looked_up], looked_up, axis=0),
    ]
    if activation.rank == 4:
        nodes.append(helper.make_node("Transpose", [stem], [result], result, perm=[0, 3, 1, 2]))
    gone = {id(activation.function), id(activation.quantize)}
    graph.nodes = [node for node in graph.nodes if id(node) not in gone] + nodes
    graph.reindex()
