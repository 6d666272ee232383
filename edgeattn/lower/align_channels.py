"""Widen the squeezed maps of float gates to a multiple of eight channels.

TensorRT's float16 convolutions want channels in groups of eight. Where a gate squeezes to 15, every convolution
that reads the squeezed map costs a kernel that pads it. Filters of zeros, read by columns of zeros, change no
number: whatever the activation makes of the new channels is multiplied by zero.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import NodeProto

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.gates import find_gates
from edgeattn.onnx_graph import Array, Graph, attribute

__all__ = ["AlignChannels"]

_GROUP = 8
_POINTWISE = frozenset({"Relu", "Clip", "HardSwish", "Sigmoid", "HardSigmoid", "Tanh"})


@dataclasses.dataclass(frozen=True)
class AlignChannels(EveryGraph):
    """Append channels of zeros between the convolutions of a gate."""

    name: str = "align-channels"

    def __call__(self, graph: Graph) -> bool:
        """Widen every squeezed map that is not aligned."""
        found = _unaligned(graph)
        for writer, readers in found:
            weight = graph.constants[writer.input[1]]
            extra = -len(weight) % _GROUP
            _replace(graph, writer, 1, np.pad(weight, [(0, extra), *[(0, 0)] * 3]))
            if len(writer.input) > 2 and writer.input[2]:
                _replace(graph, writer, 2, np.pad(graph.constants[writer.input[2]], (0, extra)))
            for reader in readers:
                columns = graph.constants[reader.input[1]]
                _replace(graph, reader, 1, np.pad(columns, [(0, 0), (0, extra), (0, 0), (0, 0)]))
        graph.reindex()
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that none is left."""
        left = _unaligned(graph)
        return f"{left[0][0].name!r} still writes an odd number of channels" if left else ""


def _replace(graph: Graph, node: NodeProto, index: int, value: Array) -> None:
    name = graph.fresh_name(f"{node.input[index]}.aligned")
    graph.constants[name] = value
    node.input[index] = name
    graph.reindex()


def _unaligned(graph: Graph) -> list[tuple[NodeProto, list[NodeProto]]]:
    """Return convolutions of gates with an odd number of outputs, with the convolutions that read them."""
    inside = {id(node) for gate in find_gates(graph) for node in gate.nodes}
    found = []
    for node in graph.nodes:
        if id(node) not in inside or not _is_plain(graph, node):
            continue
        if len(graph.constants[node.input[1]]) % _GROUP == 0:
            continue
        readers = _readers(graph, node.output[0])
        if readers and all(_is_plain(graph, reader) for reader in readers):
            found.append((node, readers))
    return found


def _is_plain(graph: Graph, node: NodeProto) -> bool:
    weight = graph.constant(node.input[1]) if node.op_type == "Conv" else None
    if weight is None or weight.ndim != 4 or int(attribute(node, "group", 1)) != 1:
        return False
    return len(node.input) < 3 or not node.input[2] or node.input[2] in graph.constants


def _readers(graph: Graph, name: str) -> list[NodeProto]:
    """Return what reads a tensor behind point-wise functions; empty if that is not all convolutions."""
    if name in graph.output_names:
        return []
    found: list[NodeProto] = []
    for user in graph.consumers.get(name, []):
        if user.op_type in _POINTWISE and user.input[0] == name:
            behind = _readers(graph, user.output[0])
            if not behind:
                return []
            found += behind
        elif user.op_type == "Conv" and user.input[0] == name:
            found.append(user)
        else:
            return []
    return found
