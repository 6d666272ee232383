"""One ONNX operation on arrays, by ONNX's own reference evaluator: slow, and complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TypeProto, helper, shape_inference
from onnx.reference import ReferenceEvaluator

from edgeattn.errors import ModelError

__all__ = ["evaluate_node", "same_pads"]


def same_pads(
    way: str, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Return the pads that ``auto_pad`` SAME_UPPER or SAME_LOWER stands for: (begin of every axis, end of every axis).

    Args:
        way: Which of the two: where the odd pixel goes.
        sizes: Of the map, by axis; the others as well.
        kernel: Of the window.
        strides: Of the window.
        dilations: Of the window.
    """
    begins, ends = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        begins.append(less if way == "SAME_UPPER" else more)
        ends.append(more if way == "SAME_UPPER" else less)
    return [int(side) for side in (*begins, *ends)]


def evaluate_node(node: NodeProto, feeds: Mapping[str, NDArray[Any]], opset: int) -> list[NDArray[Any]]:
    """Compute one node.

    Operators that ONNX defines by others (Gelu, GroupNormalization) are known too: what they consist of depends on
    the types of their inputs, so that the node stands in a model which says them.

    Args:
        node: Any node of ONNX's own domain.
        feeds: Its inputs by name; those left out are absent.
        opset: Version of the operators.

    Returns:
        One array for each output that has a name.

    Raises:
        ModelError: If the evaluator does not know the operator, or cannot compute it on these inputs.
    """
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    outputs = [helper.make_value_info(name, TypeProto()) for name in node.output if name]
    model = helper.make_model(
        helper.make_graph([node], "node", inputs, outputs), opset_imports=[helper.make_opsetid("", opset)]
    )
    try:
        evaluator = ReferenceEvaluator(shape_inference.infer_shapes(model))
        return [np.asarray(value) for value in evaluator.run(None, dict(feeds))]
    except Exception as exc:  # an operator may raise anything
        raise ModelError(
            f"{node.name or node.op_type!r} ({node.op_type}, opset {opset}) cannot be computed: "
            f"{' '.join(str(exc).split())[:300]} Leave this operator out of the network, or spell it by others."
        ) from exc
