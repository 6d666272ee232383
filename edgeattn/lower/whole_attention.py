"""Compute attention over places with float32 scores: ``softmax(q k^T) v`` with no rounding before the softmax.

The scores are the largest tensor there is, and a softmax is computed in float32 whatever is around it. With a Q/DQ pair
around them they are converted to 8 bits and back for nothing.

OpenVINO has one kernel for all three steps, which keeps a few rows of the scores in a core's cache, and no INT8 product of
two maps that are both unsigned: with pairs around scores and probabilities the same is seven kernels over float32
scores. So both pairs go. ONNX Runtime multiplies integers to float32 in one kernel (``MatMulIntegerToFloat``) and has
an INT8 product for the probabilities, so only the pair of the scores goes, and a scale becomes part of the queries'.

Queries, keys, values and the result stay quantized. What was rounded to 8 bits is not any more, towards the float network.
A network like MobileViT at 256x256 (Xeon with AVX-512, one thread): OpenVINO 0.86 times as fast as FP32 without it and 1.14
times with it, ONNX Runtime 0.89 and 1.03.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from onnx import NodeProto

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.part_softmaxes import is_along_last_axis
from edgeattn.lower.patterns import dequantize_of, remove_pair
from edgeattn.onnx_graph import Graph, is_clip

__all__ = ["WholeAttention"]

_BETWEEN = frozenset({"Add", "Div", "Mul", "Where"})
"""What scores may go through before the softmax: a scale, a bias of positions, a mask."""
_LEAST_SCORES = 1024
"""With fewer, integer kernels are as fast."""


@dataclasses.dataclass(frozen=True)
class WholeAttention(EveryGraph):
    """Remove the pairs between a product of two maps, its softmax, and the product behind that.

    Attributes:
        in_one: Whether the runtime computes all three in one float kernel. Otherwise the product before the softmax is
            one of integers to float: the pair behind the softmax stays, a scalar factor of the scores becomes part of
            the first map's scale, and softmaxes along another axis than the last stay as they are, as such a runtime
            transposes their scores.
    """

    name: str = "whole-attention"
    in_one: bool = True

    def __call__(self, graph: Graph) -> bool:
        """Remove them."""
        found = self._found(graph)
        for softmax, quantizes in found:
            for quantize in quantizes:
                remove_pair(graph, quantize)
            if not self.in_one:
                _fold_scale(graph, softmax)
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that none is left."""
        left = self._found(graph)
        return f"{left[0][0].name!r} reads or writes scores of 8 bits" if left else ""

    def _found(self, graph: Graph) -> list[tuple[NodeProto, list[NodeProto]]]:
        """Return every softmax of an attention with the quantizations to remove, where there are any."""
        shapes = graph.shapes()
        found = []
        for node in graph.nodes:
            shape = shapes.get(node.input[0], ())
            if node.op_type != "Softmax" or math.prod(shape) < _LEAST_SCORES:
                continue
            if not self.in_one and not is_along_last_axis(node, shape):
                continue
            before, behind = _scores(graph, node.input[0]), _probabilities(graph, node)
            if before is not None and behind is not None:
                quantizes = [*before, *(behind if self.in_one else ())]
                if quantizes:
                    found.append((node, quantizes))
        return found


def _scores(graph: Graph, name: str) -> list[NodeProto] | None:
    """Return the quantizations between a product of two maps and `name`; None if that is not what it comes from."""
    found: list[NodeProto] = []
    while True:
        dequantize = dequantize_of(graph, name)
        if dequantize is not None:
            quantize = graph.producer.get(dequantize.input[0])
            if quantize is None or not _is_single(graph, quantize):
                return None
            found.append(quantize)
            name = quantize.input[0]
        node = graph.producer.get(name)
        if node is None or graph.only_consumer(name) is None:
            return None
        if node.op_type == "MatMul":
            return found if _is_of_maps(graph, node) else None
        read = [item for item in node.input if item not in graph.constants]
        if node.op_type not in _BETWEEN or len(read) != 1:
            return None
        name = read[0]


def _probabilities(graph: Graph, softmax: NodeProto) -> list[NodeProto] | None:
    """Return the quantization between a softmax and the product of its result and a map; None if there is none such."""
    user = graph.only_consumer(softmax.output[0])
    found: list[NodeProto] = []
    if user is not None and user.op_type == "QuantizeLinear":
        if not _is_single(graph, user):
            return None
        found.append(user)
        dequantize = graph.only_consumer(user.output[0])
        user = graph.only_consumer(dequantize.output[0]) if dequantize is not None else None
    return found if user is not None and user.op_type == "MatMul" and _is_of_maps(graph, user) else None


def _is_single(graph: Graph, quantize: NodeProto) -> bool:
    """Whether a pair's integers go to one place, and stand for no clip of the network's."""
    dequantize = graph.only_consumer(quantize.output[0])
    return (
        quantize.op_type == "QuantizeLinear"
        and not is_clip(quantize)
        and dequantize is not None
        and dequantize.op_type == "DequantizeLinear"
        and graph.only_consumer(quantize.input[0]) is not None
        and graph.only_consumer(dequantize.output[0]) is not None
    )


def _is_of_maps(graph: Graph, node: NodeProto) -> bool:
    """Whether neither factor of a product is a constant, quantized or not."""
    for name in node.input:
        dequantize = dequantize_of(graph, name)
        source = dequantize.input[0] if dequantize is not None else name
        if source in graph.constants:
            return False
    return True


def _fold_scale(graph: Graph, softmax: NodeProto) -> None:
    """Multiply the first map's scale by a scalar that the scores are multiplied with or divided by."""
    scale = graph.producer.get(softmax.input[0])
    if scale is None or scale.op_type not in ("Mul", "Div"):
        return
    places = [index for index, name in enumerate(scale.input) if graph.scalar(name) is not None]
    if len(places) != 1 or (scale.op_type == "Div" and places != [1]):
        return
    factor, product = graph.scalar(scale.input[places[0]]), graph.producer.get(scale.input[1 - places[0]])
    dequantize = dequantize_of(graph, product.input[0]) if product is not None else None
    if factor is None or product is None or dequantize is None or product.op_type != "MatMul":
        return
    step = graph.scalar(dequantize.input[1])
    if step is None or graph.only_consumer(dequantize.output[0]) is not product:
        return
    if scale.op_type == "Div":
        factor = 1 / factor if factor else 0.0
    if not factor > 0:
        return
    name = graph.fresh_name(f"{dequantize.output[0]}.scaled")
    graph.constants[name] = np.float32(step * factor)
    dequantize.input[1] = name
    graph.replace_input(scale.output[0], product.output[0])
    graph.replace(scale)
