"""All 256 levels with zero point 0: move a tensor's zero point into the biases around it.

A symmetric signed grid spends half of its levels on values that a ReLU never lets through. Where the
layer before a tensor and every layer behind it have a bias, the tensor can be shifted instead: with
x' = x - c the writer's bias loses c, and a reader's bias gains c times the sum of its weights, so that
the readers compute what they did. On the grid, c = (-128 - zero point) * -scale makes the integers those
of the affine grid, with zero point 0. A reader that pads would pad with c: a pad of integers, with the one that stands
for zero, does it instead. That is a pass over the map, so it is for the tensors that cost the answers most
(`edgeattn.quant.padded_grids`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from edgeattn.errors import ModelError
from edgeattn.onnx_graph import Array, Graph, attribute
from edgeattn.quant.plan import QuantPlan, quantize_weight

__all__ = ["can_fold_zero_point", "fold_zero_points", "folding_shifts", "is_unpadded"]


def can_fold_zero_point(graph: Graph, name: str, *, behind_pads: bool = False) -> bool:
    """Return whether the layers around a tensor can take its zero point.

    Args:
        graph: Float graph.
        name: The tensor.
        behind_pads: Whether convolutions that pad may read it.
    """
    if name in graph.output_names or name in graph.input_names:
        return False
    readers = graph.consumers.get(name, [])
    if not readers or _writer(graph, name) is None:
        return False
    return all(
        _is_layer(graph, node)
        and node.input[0] == name
        and list(node.input).count(name) == 1
        and (is_unpadded(node) or (behind_pads and _pads_maps(node)))
        for node in readers
    )


def fold_zero_points(graph: Graph, plan: QuantPlan) -> None:
    """Shift, in place, the biases around the tensors that profile s8 gives all of its levels.

    To be called while the graph still holds float weights under their own names. Afterwards the graph
    computes the float function only once the tensors' clips are gone and their grids are in place.

    Args:
        graph: After `apply_plan_constants`.
        plan: Names the tensors and the scales of weights.

    Raises:
        ModelError: If a layer around such a tensor has no bias of its own.
    """
    for name, shift in folding_shifts(graph, plan).items():
        graph.constants[name] = (graph.constants[name].astype(np.float64) + shift).astype(np.float32)


def folding_shifts(graph: Graph, plan: QuantPlan) -> dict[str, NDArray[np.float64]]:
    """Return, by bias, what `fold_zero_points` adds to it.

    Args:
        graph: After `apply_plan_constants`.
        plan: Names the tensors and the scales of weights.

    Raises:
        ModelError: If a layer around such a tensor has no bias of its own.
    """
    shifts: dict[str, NDArray[np.float64]] = {}

    def add(name: str, shift: float | NDArray[np.float64]) -> None:
        shifts[name] = shifts.get(name, np.zeros(graph.constants[name].shape)) + shift

    for name, item in plan.activations.items():
        if not item.folds_zero_point:
            continue
        writer = _writer(graph, name)
        if writer is None or not can_fold_zero_point(graph, name, behind_pads=True):
            raise ModelError(
                f"The plan folds the zero point of {name!r}, but the layers around it cannot take it. "
                "A plan belongs to one graph: calibrate this one."
            )
        params = item.params("s8")
        shift = -params.zero_point * params.scale
        # x' = x - shift has zero point 0: integer q stands for q * scale = x - shift.
        add(writer.input[2], -shift)
        for reader in graph.consumers[name]:
            weight = graph.constants[reader.input[1]]
            axis = 1 if reader.op_type == "Gemm" and not attribute(reader, "transB", 0) else 0
            scales = plan.weights.get(reader.input[1])
            if scales is not None:
                weight = _on_grid(weight, scales, axis)
            rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
            add(reader.input[2], rows.astype(np.float64).sum(axis=1) * shift)
    return shifts


def _on_grid(weight: Array, scales: Sequence[float], axis: int) -> NDArray[np.float64]:
    """Return what the integers stand for: the sum that the shift is multiplied with in the kernel."""
    steps = np.asarray(scales, np.float32).astype(np.float64)
    shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
    return quantize_weight(weight, steps, axis).astype(np.float64) * steps.reshape(shape)


def _writer(graph: Graph, name: str) -> NodeProto | None:
    """Return the layer whose bias shifts a tensor, also through a clip that its range replaces."""
    node = graph.producer.get(name)
    if node is not None and node.op_type in ("Clip", "Relu"):
        source = node.input[0]
        node = graph.producer.get(source) if graph.only_consumer(source) is not None else None
    return node if node is not None and _is_layer(graph, node) else None


def _is_layer(graph: Graph, node: NodeProto) -> bool:
    """Whether a node is a convolution or Gemm with constants that are nobody else's."""
    if node.op_type not in ("Conv", "Gemm") or len(node.input) != 3:
        return False
    if node.op_type == "Gemm" and (
        attribute(node, "alpha", 1.0) != 1.0
        or attribute(node, "beta", 1.0) != 1.0
        or attribute(node, "transA", 0)
    ):
        return False
    constants = [graph.constants.get(item) for item in node.input[1:]]
    return (
        all(
            value is not None and len(graph.consumers[item]) == 1
            for item, value in zip(node.input[1:], constants, strict=True)
        )
        and constants[1] is not None
        and constants[1].ndim == 1
    )


def is_unpadded(node: NodeProto) -> bool:
    """Whether a convolution or pool pads nothing, as far as its attributes say."""
    return attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(
        attribute(node, "pads", [])
    )


def _pads_maps(node: NodeProto) -> bool:
    """Whether a convolution pads maps by numbers of pixels that are known."""
    return attribute(node, "auto_pad", "NOTSET") == "NOTSET" and len(attribute(node, "pads", [])) == 4
