"""Which layers of a quantized graph can saturate on x86 without VNNI: see `edgeattn.quant.pairs`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.quant.pairs import pair_weights

if TYPE_CHECKING:
    from onnx import ModelProto

    from edgeattn.onnx_graph import Graph

__all__ = ["PairSaturation", "prove_pair_saturation"]

_LOW, _HIGH = -(2**15), 2**15 - 1


@dataclasses.dataclass(frozen=True)
class PairSaturation:
    """Whether sums of two products of a layer can leave 16 bits.

    Attributes:
        name: Of the layer's node.
        pairs: Sums of two products, for one place of the output.
        unsafe_pairs: Of these, that some activations would make saturate: from the weights alone.
        worst_sum: The largest size that a sum can reach.
        unsafe_on_data: Pairs that can saturate with each channel's largest activation that was seen; None
            without data.
        worst_sum_on_data: As `worst_sum`, with those.
    """

    name: str
    pairs: int
    unsafe_pairs: int
    worst_sum: int
    unsafe_on_data: int | None = None
    worst_sum_on_data: int | None = None

    @property
    def can_saturate(self) -> bool:
        """Whether any activations can make it saturate."""
        return self.unsafe_pairs > 0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return {**dataclasses.asdict(self), "can_saturate": self.can_saturate}


def prove_pair_saturation(
    model: ModelProto, largest: Mapping[str, NDArray[Any]] | None = None
) -> tuple[PairSaturation, ...]:
    """Judge every convolution and matrix product that reads integers.

    Args:
        model: QDQ, in either profile: signed activations are made unsigned by adding 128, as kernels do.
        largest: By name of integers that a QuantizeLinear writes, the largest one seen in each channel.
    """
    from edgeattn.lower.patterns import dequantized_constant
    from edgeattn.onnx_graph import Graph, attribute

    graph = Graph(model)
    results = []
    for node in graph.nodes:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        weight, source = dequantized_constant(graph, node.input[1]), _source(graph, node.input[0])
        if weight is None or source is None or weight.integers.dtype != np.int8:
            continue
        integers = weight.integers
        if node.op_type != "Conv" and not (node.op_type == "Gemm" and attribute(node, "transB", 0)):
            integers = integers.T
        if integers.ndim == 4 and integers.shape[1] == 1:
            continue
        seen = (largest or {}).get(source)
        if seen is not None and attribute(node, "group", 1) != 1:
            seen = np.full(integers.shape[1], seen.max())
        results.append(_judge(node.name or node.output[0], integers, seen))
    return tuple(results)


def _source(graph: Graph, name: str) -> str | None:
    """Return the integers that a product reads, through what only moves them."""
    from edgeattn.lower.patterns import dequantize_of

    while True:
        pair = dequantize_of(graph, name)
        if pair is not None:
            return str(pair.input[0])
        node = graph.producer.get(name)
        if node is None or node.op_type not in ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"):
            return None
        name = node.input[0]


def _judge(name: str, integers: NDArray[Any], seen: NDArray[Any] | None) -> PairSaturation:
    first, second, channels = pair_weights(integers)
    worst, unsafe = _reach(first, second, np.full(channels.shape, 255))
    result = PairSaturation(name, first.size, unsafe, worst)
    if seen is None or len(seen) != integers.shape[1]:
        return result
    bytes_seen = np.append(seen.astype(np.int64), 0)[channels]
    worst, unsafe = _reach(first, second, bytes_seen)
    return dataclasses.replace(result, unsafe_on_data=unsafe, worst_sum_on_data=worst)


def _reach(first: NDArray[np.int64], second: NDArray[np.int64], top: NDArray[np.int64]) -> tuple[int, int]:
    """Return the largest size of a sum and how many sums can leave 16 bits; `top` is (2, pairs)."""
    above = np.maximum(first, 0) * top[0] + np.maximum(second, 0) * top[1]
    below = np.minimum(first, 0) * top[0] + np.minimum(second, 0) * top[1]
    worst = int(max(above.max(initial=0), -below.min(initial=0)))
    return worst, int(np.sum((above > _HIGH) | (below < _LOW)))
