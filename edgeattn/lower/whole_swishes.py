"""Give hard swishes back to runtimes that compute them inside the convolution before.

`edgeattn.quant.channel_gates` spells a hard swish as a product with a gate by channel, ``y = x * clip(x * w + 1/2, 0, 1)``,
so that x and y can have a factor for each channel. With ``f = 6 w`` that is

    y = hard_swish(x * f) / f,

which OpenVINO and TensorRT compute in the convolution that writes x, factors included, where the gate would take two more
kernels. x and the gate are not rounded then, as before `drop-inner-pairs`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import dequantize_of, dequantize_weight, dequantized_constant
from edgeattn.onnx_graph import Array, Graph, attribute, is_clip

__all__ = ["WholeSwishes"]


@dataclasses.dataclass(frozen=True)
class WholeSwishes(EveryGraph):
    """Rewrite products with a gate by channel as hard swishes between two factors."""

    name: str = "whole-swishes"

    def __call__(self, graph: Graph) -> bool:
        """Rewrite them."""
        found = [(node, parts) for node in graph.nodes if (parts := _parts(graph, node)) is not None]
        for node, (source, factor) in found:
            _rewrite(graph, node, source, factor)
        if found:
            graph.remove_unused()
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that none is left."""
        left = [node.name for node in graph.nodes if _parts(graph, node) is not None]
        return f"{left[0]!r} is still a product with its own gate" if left else ""


def _parts(graph: Graph, node: NodeProto) -> tuple[str, Array] | None:
    """Return the tensor that a hard swish reads, before it is quantized, and its factors; None for other nodes."""
    if node.op_type != "Mul" or len(node.input) != 2:
        return None
    for whole, gate in (node.input, reversed(node.input)):
        source, factor = _quantized_by(graph, whole), _factor(graph, gate, whole)
        if source is None or factor is None or is_clip(source):
            continue
        writer = graph.producer.get(source.input[0])
        if (
            writer is not None
            and writer.op_type == "Conv"
            and graph.only_consumer(source.input[0]) is not None
        ):
            return source.input[0], factor
    return None


def _quantized_by(graph: Graph, name: str) -> NodeProto | None:
    """Return the QuantizeLinear behind whose DequantizeLinear a tensor lies."""
    pair = dequantize_of(graph, name)
    node = graph.producer.get(pair.input[0]) if pair is not None else None
    return node if node is not None and node.op_type == "QuantizeLinear" else None


def _factor(graph: Graph, gate: str, whole: str) -> Array | None:
    """Return six times the weights of the convolution that makes a gate of `whole`, shape (C,)."""
    quantize = _quantized_by(graph, gate)
    conv = graph.producer.get(quantize.input[0]) if quantize is not None else None
    # What of the clip the range does not imply.
    if conv is not None and conv.op_type in ("Relu", "Clip"):
        conv = graph.producer.get(conv.input[0])
    if conv is None or conv.op_type != "Conv" or conv.input[0] != whole or len(conv.input) < 3:
        return None
    weight, bias = dequantized_constant(graph, conv.input[1]), graph.constant(conv.input[2])
    if weight is None or bias is None or not np.all(bias == np.float32(0.5)):
        return None
    groups = int(attribute(conv, "group", 1))
    if weight.integers.shape != (groups, 1, 1, 1) or quantize is None or not _ends_at_one(graph, quantize):
        return None
    factor = 6 * dequantize_weight(weight).reshape(-1)
    return factor if np.all(factor > 0) else None


def _ends_at_one(graph: Graph, quantize: NodeProto) -> bool:
    scale, zero_point = graph.scalar(quantize.input[1]), graph.constant(quantize.input[2])
    if scale is None or zero_point is None or zero_point.size != 1:
        return False
    steps = np.iinfo(zero_point.dtype).max - int(zero_point.reshape(()))
    return abs(steps * scale - 1) < 0.01


def _rewrite(graph: Graph, node: NodeProto, source: str, factor: Array) -> None:
    shape, stem = (1, -1, 1, 1), f"{node.output[0]}.whole"
    names = [graph.fresh_name(f"{stem}.{part}") for part in ("factor", "scaled", "swish", "inverse")]
    graph.constants[names[0]] = factor.reshape(shape).astype(np.float32)
    graph.constants[names[3]] = (1 / factor).reshape(shape).astype(np.float32)
    graph.replace(
        node,
        helper.make_node("Mul", [source, names[0]], [names[1]], names[1]),
        helper.make_node("HardSwish", [names[1]], [names[2]], names[2]),
        helper.make_node("Mul", [names[2], names[3]], list(node.output), node.name),
    )
