"""Rules about operations and shapes."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto

from edgeattn.lint.base import Evidence, Rule, View, name_of
from edgeattn.lint.dla_support import why_not_dla
from edgeattn.lower.copy_gates import GATES, VIEWS, CopyGates
from edgeattn.lower.explicit_swish import ExplicitSwish
from edgeattn.lower.half_remainder import is_int8
from edgeattn.lower.part_resizes import PartResizes, interpolated_integers
from edgeattn.lower.part_softmaxes import PartSoftmaxes, broken_softmaxes
from edgeattn.lower.split_pools import SplitPools
from edgeattn.onnx_graph import Graph, attribute

__all__ = ["RULES"]


def _one_dimensional(view: View) -> Iterator[Evidence]:
    for node in view.nodes("Conv", "ConvTranspose"):
        shape = view.shapes.get(node.output[0]) or view.shapes.get(node.input[0]) or ()
        kernel = attribute(node, "kernel_shape", [])
        if len(shape) == 3 or len(kernel) == 1:
            yield Evidence(name_of(node), node.output[0], f"Conv1d, kernel {list(kernel)}")


def _transposes(view: View) -> Iterator[Evidence]:
    for node in view.nodes("Transpose"):
        before = view.writer(node.input[0])
        behind = view.readers(node.output[0])
        if before is None or not any(is_int8(view.graph, user) for user in behind):
            continue
        if is_int8(view.graph, before) or _ends_int8(view, before):
            perm = list(attribute(node, "perm", []))
            yield Evidence(name_of(node), node.output[0], f"Transpose {perm} between INT8 layers")


def _ends_int8(view: View, node: NodeProto) -> bool:
    """Return whether a node's result is quantized."""
    return any(user.op_type == "QuantizeLinear" for user in view.graph.consumers.get(node.output[0], []))


def _dynamic_shapes(view: View) -> Iterator[Evidence]:
    for item in (*view.graph.inputs, *view.graph.outputs):
        dims = item.type.tensor_type.shape.dim
        shown = [dim.dim_value or dim.dim_param or "?" for dim in dims]
        if not dims or any(dim.dim_value <= 0 for dim in dims):
            yield Evidence(item.name, item.name, f"shape {shown}")
    for node in view.nodes("Shape", "NonZero", "Loop", "If"):
        # Exporters ask for sizes that are known: every tool folds those.
        sizes = view.shapes.get(node.input[0], ()) if node.op_type == "Shape" else ()
        if sizes and all(size > 0 for size in sizes):
            continue
        yield Evidence(name_of(node), node.output[0], f"{node.op_type} at run time")


def _shared_sigmoids(view: View) -> Iterator[Evidence]:
    for node in view.nodes(*GATES):
        readers = view.readers(node.output[0])
        if len(readers) > 1 and not all(reader.op_type in VIEWS for reader in readers):
            yield Evidence(name_of(node), node.output[0], f"{len(readers)} consumers")


def _copy_gates(graph: Graph) -> bool:
    return CopyGates()(graph)


def _depthwise_swish(view: View) -> Iterator[Evidence]:
    """A depthwise INT8 convolution whose swish is cut from it by Q/DQ, or is not followed by one."""
    for node in view.nodes("Conv"):
        weight = view.shapes.get(node.input[1], ())
        if int(attribute(node, "group", 1)) == 1 or len(weight) != 4 or weight[1] != 1:
            continue
        if not is_int8(view.graph, node):
            continue
        users = view.graph.consumers.get(node.output[0], [])
        if any(user.op_type in GATES for user in view.readers(node.output[0])) and not any(
            user.op_type in GATES for user in users
        ):
            yield Evidence(
                name_of(node), node.output[0], "Q/DQ between the depthwise convolution and its swish"
            )


def _not_for_dla(view: View) -> Iterator[Evidence]:
    for node in view.graph.nodes:
        if node.op_type == "Concat":
            continue
        reason = why_not_dla(view, node)
        if reason:
            yield Evidence(name_of(node), node.output[0], f"{node.op_type}: {reason}")


def _concat_for_dla(view: View) -> Iterator[Evidence]:
    for node in view.nodes("Concat"):
        reason = why_not_dla(view, node)
        if reason:
            yield Evidence(name_of(node), node.output[0], reason)


def _spell_for_dla(graph: Graph) -> bool:
    changed = [SplitPools()(graph), ExplicitSwish()(graph)]
    return any(changed)


def _overflowing_softmaxes(view: View) -> Iterator[Evidence]:
    for node, quantize in broken_softmaxes(view.graph):
        scale = view.graph.scalar(quantize.input[1])
        yield Evidence(name_of(node), node.output[0], f"quantized in steps of {scale:.3g}")


def _interpolated_integers(view: View) -> Iterator[Evidence]:
    for node, _ in interpolated_integers(view.graph):
        yield Evidence(name_of(node), node.output[0], f"{attribute(node, 'mode')} interpolation of integers")


RULES = (
    Rule(
        "OPS001",
        "a 1-D convolution",
        "TensorRT wraps it in shuffles and may find no INT8 kernel, DLA knows 2-D convolutions only, and ONNX "
        "Runtime leaves it float.",
        frozenset({"tensorrt", "dla", "ort"}),
        "warning",
        _one_dimensional,
    ),
    Rule(
        "OPS002",
        "a Transpose between INT8 layers",
        "GPU kernels keep INT8 channels in groups, so that it costs a reformat before and behind it.",
        frozenset({"tensorrt", "dla"}),
        "warning",
        _transposes,
    ),
    Rule(
        "OPS003",
        "dynamic shapes",
        "Engines of fixed size are faster everywhere, and DLA and our targets take nothing else.",
        frozenset({"tensorrt", "dla", "openvino", "ort"}),
        "error",
        _dynamic_shapes,
    ),
    Rule(
        "OPS004",
        "a gate with several consumers",
        "A sigmoid fuses into the convolution before it or the product behind it only where one operation reads it.",
        frozenset({"tensorrt", "dla"}),
        "warning",
        _shared_sigmoids,
        _copy_gates,
    ),
    Rule(
        "TRT004",
        "Q/DQ between a depthwise convolution and its swish",
        'TensorRT has no such INT8 kernel for some sizes ("Could not find any implementation"), and never fuses it.',
        frozenset({"tensorrt"}),
        "error",
        _depthwise_swish,
    ),
    Rule(
        "ORT002",
        "a quantized softmax that overflows",
        "Before 1.32 ONNX Runtime's integer softmax multiplies by 1 / scale before it divides: with steps finer than "
        "1 / (148 length) the largest probabilities come out wrong, and nothing says so.",
        frozenset({"ort"}),
        "error",
        _overflowing_softmaxes,
        PartSoftmaxes(),
    ),
    Rule(
        "ORT003",
        "an interpolating resize between Q/DQ pairs",
        "Before 1.27 ONNX Runtime cuts what lies between two integers, half a step on the average and always the same way, "
        "and ends with cubic interpolation.",
        frozenset({"ort"}),
        "warning",
        _interpolated_integers,
        PartResizes(),
    ),
    Rule(
        "DLA001",
        "an operation that DLA does not run",
        "It runs on the GPU, and the network is split there into one more DLA loadable.",
        frozenset({"dla"}),
        "warning",
        _not_for_dla,
        _spell_for_dla,
        "the last bits of float32",
    ),
    Rule(
        "DLA002",
        "a Concat that is not along channels",
        "DLA joins maps along channels only: another axis runs on the GPU and splits the network.",
        frozenset({"dla"}),
        "warning",
        _concat_for_dla,
    ),
)
