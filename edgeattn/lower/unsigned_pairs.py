"""Write signed activations as unsigned ones, shifted by 128: the same numbers, which OpenVINO then keeps.

OpenVINO 2026.4's low-precision transformations turn most signed activations of an x86 graph into unsigned ones
themselves, unless the processor has AMX. In graphs where pooled results of a signed tensor are concatenated and feed a
convolution, as the gates of Triplet Attention do, the convolution then subtracts a zero point that is half a step off:
its results move by the sum of its weights times half a step. Unsigned activations with zero point 128 are computed as
they are written.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import NodeProto

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import same_parameters
from edgeattn.onnx_graph import Graph

__all__ = ["UnsignedPairs"]

_SHIFT = 128


@dataclasses.dataclass(frozen=True)
class UnsignedPairs(EveryGraph):
    """Give the Q/DQ pairs of int8 activations the type uint8."""

    name: str = "unsigned-pairs"

    def __call__(self, graph: Graph) -> bool:
        """Replace the zero points of all pairs."""
        pairs = _signed_pairs(graph)
        for pair in pairs:
            for node in pair:
                node.input[2] = _shifted(graph, node.input[2])
        if pairs:
            graph.reindex()
        return bool(pairs)

    def ensures(self, graph: Graph) -> str:
        """Check that no signed pair is left."""
        left = _signed_pairs(graph)
        return f"{left[0][0].name!r} still writes int8" if left else ""


def _signed_pairs(graph: Graph) -> list[list[NodeProto]]:
    """Return each int8 QuantizeLinear with its readers, where the integers between them are seen by nobody else."""
    pairs = []
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or len(node.input) < 3 or node.output[0] in graph.output_names:
            continue
        zero_point = graph.constant(node.input[2])
        if zero_point is None or zero_point.dtype != np.int8:
            continue
        readers = graph.consumers.get(node.output[0], [])
        if all(item.op_type == "DequantizeLinear" and same_parameters(graph, node, item) for item in readers):
            pairs.append([node, *readers])
    return pairs


def _shifted(graph: Graph, name: str) -> str:
    """Return the name of a constant that is `name`, shifted; pairs that share the one share the other."""
    values = (graph.constants[name].astype(np.int16) + _SHIFT).astype(np.uint8)
    shifted = f"{name}.unsigned"
    if shifted in graph.constants and not np.array_equal(graph.constants[shifted], values):
        shifted = graph.fresh_name(shifted)
    graph.constants[shifted] = values
    return shifted
