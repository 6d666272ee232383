"""What NVIDIA's deep learning accelerator (DLA) on Xavier and Orin runs.

Sources: NVIDIA's "DLA Supported Layers and Restrictions" (TensorRT documentation; limits of kernels, strides,
axes and sizes, and 16 loadables per core) and the operator matrix of Deep-Learning-Accelerator-SW
(``operators/README.md``, column "Orin DLA support through TensorRT"). Where the two differ, the stricter holds:
a static table cannot see a compiler that succeeds against its documentation. Windows on ARM has a table of
its own, which this is not.
"""

from __future__ import annotations

from onnx import NodeProto

from edgeattn.lint.base import View
from edgeattn.lower.patterns import dequantized_constant
from edgeattn.onnx_graph import attribute

__all__ = ["MAX_LOADABLES", "TRANSPARENT", "why_not_dla"]

MAX_LOADABLES = 16
"""Loadables that one DLA core holds at a time."""

TRANSPARENT = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity", "Constant"})
"""No layers of their own: on DLA, scales are given beside the network."""

_LARGEST_SIZE = 8192
_LARGEST_BATCH = 4096
_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "PRelu"})
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Max", "Sum"})
_NATIVE = frozenset({"Slice", "Abs", "Softmax"})
_REDUCTIONS = frozenset({"ReduceMean", "ReduceMax", "ReduceMin", "GlobalAveragePool", "GlobalMaxPool"})


def why_not_dla(view: View, node: NodeProto) -> str:
    """Return why a node does not run on DLA, or an empty string.

    Args:
        view: The graph.
        node: One of its nodes; Q/DQ nodes and casts count as part of their neighbours.
    """
    kind = node.op_type
    if kind in TRANSPARENT:
        return ""
    shape = view.shapes.get(node.output[0])
    if shape is None:
        return "its size is not fixed"
    if any(size > _LARGEST_SIZE for size in shape[1:]) or (shape and shape[0] > _LARGEST_BATCH):
        return f"shape {list(shape)} is larger than {_LARGEST_SIZE} somewhere"
    if kind in ("Conv", "ConvTranspose"):
        return _convolution(view, node)
    if kind in ("Gemm", "MatMul"):
        known = node.input[1] in view.graph.constants or dequantized_constant(view.graph, node.input[1])
        return "" if known else "the second operand is computed at run time"
    if kind in ("AveragePool", "MaxPool"):
        return _pool(node)
    if kind in _ACTIVATIONS or kind in _NATIVE:
        return "" if len(shape) == 4 or kind == "Slice" else f"only on 4-D maps, here {list(shape)}"
    if kind == "Clip":
        low = view.graph.scalar(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        return "" if low == 0.0 else f"only clips that begin at 0, here at {low}"
    if kind in _ELEMENTWISE:
        return _elementwise(view, node)
    if kind == "Concat":
        return (
            "" if int(attribute(node, "axis", 1)) == 1 else f"axis {attribute(node, 'axis', 1)}, not channels"
        )
    if kind in ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"):
        return _shuffle(view, node)
    if kind in ("Resize", "Upsample", "BatchNormalization", "LRN"):
        return ""
    if kind in _REDUCTIONS:
        return "reductions are not exposed through TensorRT; a pool with a window of at most 8 is"
    return "not in the table of supported operators"


def _convolution(view: View, node: NodeProto) -> str:
    weight = view.shapes.get(node.input[1], ())
    if len(weight) != 4:
        return "only 2-D convolutions"
    kernel = attribute(node, "kernel_shape", list(weight[2:]))
    pads, strides = attribute(node, "pads", [0] * 4), attribute(node, "strides", [1, 1])
    dilations, group = attribute(node, "dilations", [1, 1]), int(attribute(node, "group", 1))
    if max(kernel) > 32:
        return f"kernel {list(kernel)} is larger than 32"
    if max(strides) > 8:
        return f"stride {list(strides)} is larger than 8"
    if max(pads) > 31:
        return f"padding {list(pads)} is larger than 31"
    if max(dilations) > 32:
        return f"dilation {list(dilations)} is larger than 32"
    if node.op_type == "ConvTranspose" and (group > 1 or max(dilations) > 1 or max(pads) > 0):
        return "a transposed convolution takes no groups, dilation or padding"
    return ""


def _pool(node: NodeProto) -> str:
    kernel, pads = attribute(node, "kernel_shape", [1, 1]), attribute(node, "pads", [0] * 4)
    strides = attribute(node, "strides", [1, 1])
    if len(kernel) != 2:
        return "only 2-D pools"
    if max(kernel) > 8:
        return f"window {list(kernel)} is larger than 8"
    if max(strides) > 16:
        return f"stride {list(strides)} is larger than 16"
    if max(pads) > 7:
        return f"padding {list(pads)} is larger than 7"
    if node.op_type == "AveragePool" and max(pads) > 0 and not attribute(node, "count_include_pad", 0):
        return "averages that leave the padding out"
    return ""


def _elementwise(view: View, node: NodeProto) -> str:
    shapes = [view.shapes.get(name) for name in node.input]
    if any(shape is None for shape in shapes):
        return "its size is not fixed"
    known = [shape for shape in shapes if shape is not None]
    largest = view.shapes[node.output[0]]
    for name, shape in zip(node.input, known, strict=True):
        if view.graph.constant(name) is not None and _size(shape) in (
            1,
            largest[1] if len(largest) > 1 else 1,
        ):
            continue  # a Scale layer
        full = (1,) * (len(largest) - len(shape)) + shape
        # Broadcast from (N, C, 1, 1) or (N, 1, 1, 1) alone.
        if full not in (
            largest,
            (*largest[:2], *(1,) * (len(largest) - 2)),
            (largest[0], *(1,) * (len(largest) - 1)),
        ):
            return f"broadcasts {list(shape)} to {list(largest)}; only one value a channel, or one in all"
    return ""


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _shuffle(view: View, node: NodeProto) -> str:
    before, after = view.shapes.get(node.input[0], ()), view.shapes.get(node.output[0], ())
    if before and after and before[0] != after[0]:
        return f"makes a batch of {after[0]} from {before[0]}; all layers of a loadable have one batch size"
    if len(before) == 4 and (len(after) == 4 or _size(after) == max(after, default=1)):
        return ""
    return f"from {list(before)} to {list(after)}; only 4-D maps"
