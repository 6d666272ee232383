"""How large the values of a graph's float tensors become: measured, or bounded by what they are computed from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto

from edgeattn.export.extents import read_extents
from edgeattn.lower.gates import source_of
from edgeattn.lower.patterns import dequantize_weight, dequantized_constant
from edgeattn.onnx_graph import Array, Graph, attribute

__all__ = ["bound_extents"]

_BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "Tanh"})
_KEEPING = frozenset(
    [
        "Relu",
        "Clip",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "Reshape",
        "Transpose",
        "Slice",
        "Split",
        "Concat",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Expand",
        "HardSwish",
        "Identity",
        "Cast",
        "Dropout",
        "Pad",
    ]
)


def bound_extents(graph: Graph) -> dict[str, float]:
    """Return a bound on the magnitude of every float tensor that has one, measured values first."""
    measured = read_extents(graph)
    found = {
        name: float(np.abs(value).max(initial=0.0))
        for name, value in graph.constants.items()
        if value.dtype.kind == "f"
    }
    found |= measured
    for node in graph.nodes:
        for name in node.output:
            if name and name not in found:
                bound = _bound(graph, node, found)
                if bound is not None:
                    found[name] = bound
    return found


def _bound(graph: Graph, node: NodeProto, known: Mapping[str, float]) -> float | None:
    if node.op_type == "DequantizeLinear":
        source = source_of(graph, node.output[0])
        if source in known:
            return known[source]
        scale = graph.constant(node.input[1])
        return None if scale is None else float(np.abs(scale).max(initial=0.0)) * 256
    if node.op_type in _BOUNDED:
        return 1.0
    # Sizes, indices and bounds are no values that a result is made of.
    inputs = [name for name in (node.input if node.op_type in _JOINING else node.input[:1]) if name]
    bounds = [known.get(name) for name in inputs]
    numbers = [value for value in bounds if value is not None]
    if len(numbers) < len(bounds) or not numbers:
        return None
    if node.op_type in _KEEPING:
        return max(numbers)
    if node.op_type in ("Add", "Sub", "Sum"):
        return sum(numbers)
    if node.op_type == "Mul":
        return float(np.prod(numbers))
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        return _convolved(graph, node, numbers[0])
    return None


_JOINING = frozenset({"Concat", "Add", "Sub", "Sum", "Mul"})


def _convolved(graph: Graph, node: NodeProto, largest: float) -> float | None:
    weight = _weight(graph, node.input[1])
    bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if weight is None or bias is None or (node.op_type == "MatMul" and weight.ndim != 2):
        return None
    axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
    rows = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).sum(axis=1)
    # In Python's floats: bounds of a deep graph go beyond float32.
    return float(rows.max()) * largest + float(np.abs(bias).max(initial=0.0))


def _weight(graph: Graph, name: str) -> Array | None:
    quantized = dequantized_constant(graph, name)
    if quantized is None:
        return graph.constant(name)
    return dequantize_weight(quantized)
