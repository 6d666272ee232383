"""Name float16, not float32, as the type that INT8 matrix products are written in.

Behind its DequantizeLinear nodes an INT8 layer is float32 in name. TensorRT runs it in INT8 all the same, but where it
has no INT8 kernel it takes the graph at its word: TensorRT for RTX 1.7.1 then refuses a float32 matrix product for
Turing (SM75), and with it every network that ends in one. Casts behind the DequantizeLinear nodes and back
change no kernel where the layer is INT8 (SM80 to SM121), and let the same file build for Turing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import NodeProto

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.extents import bound_extents
from edgeattn.lower.half_remainder import LARGEST_HALF, cast_to_half, fits_half, is_int8
from edgeattn.onnx_graph import Graph

__all__ = ["CONVOLUTIONS", "MATRIX_PRODUCTS", "HalfProducts", "float32_products"]

MATRIX_PRODUCTS = frozenset({"Gemm", "MatMul"})
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


@dataclasses.dataclass(frozen=True)
class HalfProducts(EveryGraph):
    """Cast what INT8 layers read and write to float16.

    Attributes:
        kinds: Operations that it concerns.
    """

    kinds: frozenset[str] = MATRIX_PRODUCTS
    name: str = "half-products"

    def __call__(self, graph: Graph) -> bool:
        """Insert the casts."""
        chosen = float32_products(graph, self.kinds)
        if chosen:
            cast_to_half(graph, chosen)
        return bool(chosen)

    def ensures(self, graph: Graph) -> str:
        """Check that none is left."""
        left = float32_products(graph, self.kinds)
        return f"{left[0].name or left[0].output[0]!r} is left in float32" if left else ""


def float32_products(graph: Graph, kinds: frozenset[str] = MATRIX_PRODUCTS) -> list[NodeProto]:
    """Return the INT8 layers of some kinds that are float32 in name, and whose values float16 can hold."""
    found = [node for node in graph.nodes if node.op_type in kinds and is_int8(graph, node)]
    if not found:
        return []
    types, extents = graph.element_types(), bound_extents(graph)
    return [
        node
        for node in found
        if types.get(node.output[0]) == "float32"
        and all(fits_half(extents.get(name)) for name in (*node.input[:2], node.output[0]))
        and _bias_fits(graph, node)
    ]


def _bias_fits(graph: Graph, node: NodeProto) -> bool:
    if len(node.input) < 3 or not node.input[2]:
        return True
    bias = graph.constant(node.input[2])
    return bias is not None and float(np.abs(bias).max(initial=0.0)) <= LARGEST_HALF
