"""Bring what other exporters and ONNX's own converter write into the spelling that the rest of the package knows."""

from __future__ import annotations

from onnx import NodeProto, helper

from edgeattn.onnx_graph import Graph, attribute
from edgeattn.onnx_node import same_pads

__all__ = ["drop_idle_pools", "join_softmax", "make_pads_explicit", "name_outputs_directly"]

_PADDED = frozenset({"AveragePool", "Conv", "MaxPool"})
_POOLS = frozenset({"AveragePool", "MaxPool"})
_IDLE = {"kernel_shape": 1, "strides": 1, "pads": 0}
_REDUCTIONS = frozenset(
    {"GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"}
)


def name_outputs_directly(graph: Graph) -> None:
    """Let operations write outputs themselves where an Identity at the end renames what they wrote.

    A tensor in front of it would look like one that may be quantized.
    """
    for node in [node for node in graph.nodes if node.op_type == "Identity"]:
        source, result = node.input[0], node.output[0]
        writer = graph.producer.get(source)
        if writer is None or result not in graph.output_names or source in graph.output_names:
            continue
        graph.replace(node)
        writer.output[list(writer.output).index(source)] = result
        graph.reindex()
        graph.replace_input(source, result)


def make_pads_explicit(graph: Graph) -> None:
    """Write ``auto_pad`` out as pads, as every size is fixed: TensorFlow's and Paddle's exporters leave it."""
    named = [
        node
        for node in graph.nodes
        if node.op_type in _PADDED and attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "")
    ]
    if not named:
        return
    shapes = graph.shapes()
    for node in named:
        sizes = shapes.get(node.input[0], ())[2:]
        # Only a convolution may leave its kernel's size to the weight.
        is_conv = node.op_type == "Conv"
        kernel = shapes.get(node.input[1], ())[2:] if is_conv else tuple(attribute(node, "kernel_shape"))
        if not sizes or len(sizes) != len(kernel):
            continue
        pads = _pads(node, sizes, kernel)
        kept = [item for item in node.attribute if item.name not in ("auto_pad", "pads")]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("pads", pads)])


def _pads(node: NodeProto, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> list[int]:
    """Return (begin of every axis, end of every axis)."""
    rank, way = len(sizes), attribute(node, "auto_pad")
    if way == "VALID":
        return [0] * (2 * rank)
    strides, dilations = attribute(node, "strides", [1] * rank), attribute(node, "dilations", [1] * rank)
    return same_pads(way, sizes, kernel, strides, dilations)


def drop_idle_pools(graph: Graph) -> None:
    """Remove pools and reductions that take one number each, as attention over maps of one pixel, row or column has.

    The mean of one number is that number. Between quantized tensors such a pool is a kernel of its own in ONNX Runtime
    and in OpenVINO.
    """
    asked = [node for node in graph.nodes if node.op_type in _POOLS | _REDUCTIONS]
    if not asked:
        return
    shapes = graph.shapes()
    for node in asked:
        source, result = node.input[0], node.output[0]
        if node.op_type in _POOLS:
            takes_one = all(set(attribute(node, name, [only])) == {only} for name, only in _IDLE.items())
        else:
            takes_one = bool(shapes.get(source)) and shapes[source] == shapes.get(result)
        if takes_one and not any(node.output[1:]) and result not in graph.output_names:
            graph.nodes.remove(node)
            graph.reindex()
            graph.replace_input(result, source)


def join_softmax(graph: Graph) -> None:
    """Undo what the converter to opset 13 does to a softmax: Flatten, Softmax over the rows, Reshape back.

    Where rows are the last axis anyway, that is a Softmax over it.
    """
    shapes = graph.shapes()
    for softmax in [node for node in graph.nodes if node.op_type in ("Softmax", "LogSoftmax")]:
        flatten, back = graph.producer.get(softmax.input[0]), graph.only_consumer(softmax.output[0])
        if flatten is None or back is None or (flatten.op_type, back.op_type) != ("Flatten", "Reshape"):
            continue
        shape = shapes.get(flatten.input[0], ())
        axis, rank = int(attribute(flatten, "axis", 1)), len(shape)
        if not rank or shapes.get(back.output[0]) != shape or axis % rank != rank - 1:
            continue
        if attribute(softmax, "axis", -1) not in (-1, 1) or graph.only_consumer(flatten.output[0]) is None:
            continue
        joined = helper.make_node(
            softmax.op_type, [flatten.input[0]], list(back.output), softmax.name, axis=-1
        )
        graph.replace(softmax, joined)
        graph.replace(flatten)
        graph.replace(back)
