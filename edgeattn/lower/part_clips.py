"""Keep clips away from OpenVINO's quantization of what they read.

A Clip right behind a Q/DQ pair becomes a second FakeQuantize there, on the levels of the first: its bounds move to the next
level inside, and with them every value beyond. Levels of 0.05 cut at 0.7, which is 14 of them but for float32's
last bit, come out as 0.65; cut at less than a level, as 0. An identity in between keeps the bounds, and no number changes.
A bound of 0 and one beyond the levels stay right, so ReLU is left alone.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from onnx import NodeProto

from edgeattn.lower.parting import PartingPass
from edgeattn.lower.patterns import dequantize_of
from edgeattn.onnx_graph import Graph

__all__ = ["PartClips"]


@dataclasses.dataclass(frozen=True)
class PartClips(PartingPass):
    """Put an identity between a dequantized map and a clip that has a bound among its levels, other than 0."""

    name: str = "part-clips"
    left: ClassVar[str] = "has a bound among the levels of what it reads, which OpenVINO moves"

    def found(self, graph: Graph) -> list[NodeProto]:
        """Return such clips."""
        return [node for node in graph.nodes if node.op_type == "Clip" and _is_moved(graph, node)]


def _is_moved(graph: Graph, clip: NodeProto) -> bool:
    dequantize = dequantize_of(graph, clip.input[0])
    if dequantize is None or dequantize.input[0] in graph.constants or len(dequantize.input) < 3:
        return False
    scale, zero_point = graph.scalar(dequantize.input[1]), graph.constant(dequantize.input[2])
    if scale is None or zero_point is None or zero_point.size != 1:
        return False
    limits, zero = np.iinfo(zero_point.dtype), int(zero_point.reshape(()))
    low, high = scale * (limits.min - zero), scale * (limits.max - zero)
    bounds = [graph.scalar(name) for name in clip.input[1:] if name]
    return any(bound is None or (bound != 0 and low < bound < high) for bound in bounds)
