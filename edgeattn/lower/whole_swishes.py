"""Give swishes back to runtimes that compute them inside the convolution before.

`edgeattn.quant.channel_gates` spells a hard swish as a product with a gate by channel, ``y = x * clip(x * w + 1/2, 0, 1)``,
and a swish as ``y = x * sigmoid(x * f)``, so that x and y can have a factor for each channel. With ``f = 6 w`` that is

    y = hard_swish(x * f) / f    and    y = swish(x * f) / f,

which OpenVINO and TensorRT compute in the convolution that writes x, factors included, where the gate would take two more
kernels. x and the gate are not rounded then, as with `drop-inner-pairs`. So are swishes without factors: with pairs between
its operations, one is a pass over two maps in OpenVINO.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import dequantize_of, dequantize_weight, dequantized_constant
from edgeattn.onnx_graph import Array, Graph, attribute, is_clip
from edgeattn.quant.channel_gates import BIAS

__all__ = ["WholeSwishes"]


@dataclasses.dataclass(frozen=True)
class WholeSwishes(EveryGraph):
    """Rewrite products with gates of their own as swishes, between two factors if the gate has some."""

    name: str = "whole-swishes"

    def __call__(self, graph: Graph) -> bool:
        """Rewrite them."""
        found = [(node, parts) for node in graph.nodes if (parts := _parts(graph, node)) is not None]
        for node, parts in found:
            _rewrite(graph, node, parts)
        if found:
            graph.remove_unused()
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that none is left."""
        left = [node.name for node in graph.nodes if _parts(graph, node) is not None]
        return f"{left[0]!r} is still a product with its own gate" if left else ""


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What a product with its own gate is made of.

    Attributes:
        source: The tensor before it is quantized.
        factor: By what its gate multiplies it, (C,); None without.
        kind: ``"HardSwish"`` or ``"Swish"``.
    """

    source: str
    factor: Array | None
    kind: str


def _parts(graph: Graph, node: NodeProto) -> _Parts | None:
    if node.op_type != "Mul" or len(node.input) != 2:
        return None
    for whole, gate in (node.input, reversed(node.input)):
        quantize, bent = _quantized_by(graph, whole), _quantized_by(graph, gate)
        if quantize is None or bent is None or is_clip(quantize):
            continue
        if not _reads_alone(graph, quantize, whole, gate):
            continue
        before = graph.producer.get(quantize.input[0])
        found = _gate_of(graph, graph.producer.get(bent.input[0]), whole)
        is_written = before is not None and before.op_type == "Conv"
        # A calibrated range of a plain sigmoid may end anywhere; what ends before 1 in a gate by channel bends there.
        is_whole = found is not None and (found[0] is None or _ends_at_one(graph, bent))
        if found and is_whole and is_written and graph.only_consumer(quantize.input[0]) is not None:
            return _Parts(quantize.input[0], *found)
    return None


def _reads_alone(graph: Graph, quantize: NodeProto, whole: str, gate: str) -> bool:
    """Whether nothing but the gate and the product reads a tensor, and nothing but the product the gate."""
    is_alone = graph.only_consumer(quantize.output[0]) is not None and graph.only_consumer(gate) is not None
    return is_alone and len(graph.consumers[whole]) == 2


def _quantized_by(graph: Graph, name: str) -> NodeProto | None:
    """Return the QuantizeLinear behind whose DequantizeLinear a tensor lies."""
    pair = dequantize_of(graph, name)
    node = graph.producer.get(pair.input[0]) if pair is not None else None
    return node if node is not None and node.op_type == "QuantizeLinear" else None


def _gate_of(graph: Graph, node: NodeProto | None, whole: str) -> tuple[Array | None, str] | None:
    """Return by what a gate multiplies `whole` before it bends, and the kind of gate; None for what is no gate of it."""
    kind = "HardSwish"
    if node is not None and node.op_type in ("Relu", "Clip"):
        # What of the clip the range does not imply.
        node = graph.producer.get(node.input[0])
    elif node is not None and node.op_type == "Sigmoid":
        if node.input[0] == whole:
            return None, "Swish"
        kind, quantize = "Swish", _quantized_by(graph, node.input[0])
        node = graph.producer.get(quantize.input[0]) if quantize is not None else None
    if node is None or node.op_type != "Conv" or node.input[0] != whole or len(node.input) < 3:
        return None
    weight, bias = dequantized_constant(graph, node.input[1]), graph.constant(node.input[2])
    if weight is None or bias is None or not np.all(bias == np.float32(BIAS[kind])):
        return None
    groups = int(attribute(node, "group", 1))
    if weight.integers.shape != (groups, 1, 1, 1):
        return None
    factor = dequantize_weight(weight).reshape(-1) * (6 if kind == "HardSwish" else 1)
    return (factor, kind) if np.all(factor > 0) else None


def _ends_at_one(graph: Graph, quantize: NodeProto) -> bool:
    scale, zero_point = graph.scalar(quantize.input[1]), graph.constant(quantize.input[2])
    if scale is None or zero_point is None or zero_point.size != 1:
        return False
    steps = np.iinfo(zero_point.dtype).max - int(zero_point.reshape(()))
    return abs(steps * scale - 1) < 0.01


def _rewrite(graph: Graph, node: NodeProto, parts: _Parts) -> None:
    result, stem = node.output[0], f"{node.output[0]}.whole"
    if parts.factor is None:
        graph.replace(node, *_swish(graph, parts.source, result, stem, parts.kind))
        return
    shape = (1, -1, 1, 1)
    factor, scaled, swish, inverse = (
        graph.fresh_name(f"{stem}.{part}") for part in ("factor", "scaled", "swish", "inverse")
    )
    graph.constants[factor] = parts.factor.reshape(shape).astype(np.float32)
    graph.constants[inverse] = (1 / parts.factor).reshape(shape).astype(np.float32)
    graph.replace(
        node,
        helper.make_node("Mul", [parts.source, factor], [scaled], scaled),
        *_swish(graph, scaled, swish, stem, parts.kind),
        helper.make_node("Mul", [swish, inverse], [result], result),
    )


def _swish(graph: Graph, source: str, result: str, stem: str, kind: str) -> list[NodeProto]:
    if kind == "HardSwish":
        return [helper.make_node("HardSwish", [source], [result], result)]
    gate = graph.fresh_name(f"{stem}.gate")
    return [
        helper.make_node("Sigmoid", [source], [gate], gate),
        helper.make_node("Mul", [source, gate], [result], result),
    ]
