"""Which tensors of a graph hold the same channels, so that their order can change and nothing else does.

The order of a network's inner channels is arbitrary: if what writes them and what reads them agree, the network computes
the same. A class holds the tensors that have to agree, through convolutions by channel, sums, products, gates and pools,
and every constant with an entry for each of the channels. Where an operation does more with channels than carry them
along (a convolution over neighbouring channels, a transposition, a part of them), the class cannot be reordered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from onnx import NodeProto

from edgeattn.onnx_graph import Graph, attribute, is_depthwise

__all__ = ["ChannelClass", "find_channel_classes"]

_CHANNEL = 1
"""Axis of the channels, of images (N, C, H, W) and of vectors (N, C)."""

_PLAIN = frozenset(
    [
        "Relu",
        "Clip",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Elu",
        "LeakyRelu",
        "Softplus",
        "Erf",
        "Exp",
        "Sqrt",
        "Neg",
        "Abs",
        "Identity",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
    ]
)
"""Operations on each channel by itself; further inputs are scalars."""
_ELEMENTWISE = frozenset(["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"])
_REDUCTIONS = frozenset(["ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2"])
_MOVES = frozenset(["Flatten", "Reshape", "Squeeze", "Unsqueeze"])


@dataclasses.dataclass(frozen=True)
class ChannelClass:
    """Tensors with the same channels in the same order.

    Attributes:
        name: The first of the tensors, in graph order.
        channels: How many.
        writers: Constants with an entry for each channel that is written, the axis of them, and the first of them:
            weights and biases, factors and addends.
        readers: Weights that multiply the channels and add up, and the axis of them.
        tensors: Results of nodes that have these channels, in graph order.
    """

    name: str
    channels: int
    writers: tuple[tuple[str, int, int], ...]
    readers: tuple[tuple[str, int], ...]
    tensors: tuple[str, ...]


def find_channel_classes(graph: Graph) -> list[ChannelClass]:
    """Return the classes whose channels may be put in any order.

    Args:
        graph: Canonical fp32 graph.
    """
    search = _Search(graph)
    for node in graph.nodes:
        search.visit(node)
    return search.classes()


class _Search:
    """Joins tensors node by node, and notes those whose order matters."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._shapes = graph.shapes()
        self._parent: dict[str, str] = {}
        self._blocked: set[str] = {*graph.input_names, *graph.output_names}
        self._writers: list[tuple[str, str, int]] = []
        self._readers: list[tuple[str, str, int]] = []
        self._parts: list[tuple[str, str, int]] = []

    def visit(self, node: NodeProto) -> None:
        """Take a node into account; one that is not known keeps what it touches in order."""
        kind = node.op_type
        if kind == "Conv":
            known = self._convolution(node)
        elif kind in ("Gemm", "MatMul"):
            known = self._product(node)
        elif kind in _PLAIN:
            known = all(self._size(name) == 1 for name in node.input[1:] if name)
            self._join(node.input[0], node.output[0])
        elif kind in _ELEMENTWISE:
            known = self._elementwise(node)
        elif kind in _REDUCTIONS:
            known = self._reduction(node)
        elif kind in _MOVES:
            known = self._keeps_front(node)
            self._join(node.input[0], node.output[0])
        elif kind == "Transpose":
            order = attribute(node, "perm", [])
            known = list(order[:2]) == [0, _CHANNEL]
            self._join(node.input[0], node.output[0])
        elif kind == "Slice":
            known = self._slice(node)
        elif kind in ("Concat", "Split"):
            rank = len(self._shapes.get(node.input[0], ()))
            known = rank > _CHANNEL and attribute(node, "axis", 0) % rank > _CHANNEL
            tensors = [*(node.input if kind == "Concat" else node.input[:1]), *node.output]
            known = known and not any(name in self._graph.constants for name in tensors[1:])
            for name in tensors[1:]:
                self._join(tensors[0], name)
        else:
            known = False
        if kind not in _ELEMENTWISE and node.input and node.input[0] in self._graph.constants:
            # Channels of a constant that goes through anything else do not move with the others'.
            known = False
        if not known:
            self._blocked.update(name for name in (*node.input, *node.output) if name)

    def classes(self) -> list[ChannelClass]:
        """Return what was found."""
        blocked = {self._root(name) for name in self._blocked}
        writers, readers = self._by_root(self._writers), self._by_root(self._readers)
        starts = {root: [(name, axis, 0) for name, axis in items] for root, items in writers.items()}
        self._share_out(starts, readers, blocked)
        members: dict[str, list[str]] = {}
        for node in self._graph.nodes:
            for name in node.output:
                if name and self._channels(name):
                    members.setdefault(self._root(name), []).append(name)
        found = []
        for root, names in members.items():
            counts = {self._channels(name) for name in names}
            own = {name for name, *_ in starts.get(root, [])} | {name for name, _ in readers.get(root, [])}
            if root in blocked or len(counts) != 1 or not own:
                continue
            if any(len(self._graph.consumers[name]) != 1 for name in own):
                continue
            writes, reads = tuple(starts.get(root, [])), tuple(readers.get(root, []))
            found.append(ChannelClass(names[0], counts.pop(), writes, reads, tuple(names)))
        return found

    def _share_out(
        self,
        writers: dict[str, list[tuple[str, int, int]]],
        readers: Mapping[str, Sequence[object]],
        blocked: set[str],
    ) -> None:
        """Give each part of a tensor that is cut along its channels what writes that part.

        Coordinate Attention has one layer write the gates of rows and of columns.
        """
        wholes: dict[str, list[tuple[int, str]]] = {}
        for source, part, start in self._parts:
            wholes.setdefault(self._root(source), []).append((start, part))
        for root, parts in wholes.items():
            parts.sort()
            ends = [start + self._channels(part) for start, part in parts]
            total = self._channels(root)
            is_whole = [start for start, _ in parts] == [0, *ends[:-1]] and ends[-1] == total
            below = [self._root(part) for _, part in parts]
            if root in blocked or root in readers or not is_whole or any(name in wholes for name in below):
                blocked.update((root, *below))
                continue
            for (start, _), name in zip(parts, below, strict=True):
                writers.setdefault(name, []).extend((item, axis, start) for item, axis, _ in writers[root])
            blocked.add(root)

    def _convolution(self, node: NodeProto) -> bool:
        weight = self._graph.constants.get(node.input[1])
        bias = self._graph.constants.get(node.input[2]) if len(node.input) > 2 else None
        if weight is None or weight.ndim != 4 or (len(node.input) > 2 and bias is None):
            return False
        source, result = node.input[0], node.output[0]
        if attribute(node, "group", 1) == 1:
            self._readers.append((source, node.input[1], 1))
        elif is_depthwise(node, weight.shape) and self._channels(source) == len(weight):
            self._join(source, result)
        else:
            return False
        self._writers += [(result, name, 0) for name in node.input[1:] if name]
        return True

    def _product(self, node: NodeProto) -> bool:
        weight = self._graph.constants.get(node.input[1])
        source, result = node.input[0], node.output[0]
        if weight is None or weight.ndim != 2 or len(self._shapes.get(source, ())) != 2:
            return False
        if attribute(node, "transA", 0):
            return False
        inner = 1 if attribute(node, "transB", 0) else 0
        self._readers.append((source, node.input[1], inner))
        self._writers.append((result, node.input[1], 1 - inner))
        for name in node.input[2:]:
            bias = self._graph.constants.get(name)
            if bias is None:
                return False
            if bias.size > 1:
                self._writers.append((result, name, bias.ndim - 1))
        return True

    def _elementwise(self, node: NodeProto) -> bool:
        result = node.output[0]
        rank, channels = len(self._shapes.get(result, ())), self._channels(result)
        if rank <= _CHANNEL:
            return False
        for name in node.input:
            shape = self._shapes.get(name)
            if shape is None:
                return False
            axis = _CHANNEL - (rank - len(shape))
            if axis < 0 or shape[axis] == 1:
                continue
            if shape[axis] != channels:
                return False
            if name in self._graph.constants:
                self._writers.append((result, name, axis))
            elif axis != _CHANNEL:
                return False
            else:
                self._join(name, result)
        return True

    def _reduction(self, node: NodeProto) -> bool:
        rank = len(self._shapes.get(node.input[0], ()))
        axes: Sequence[int] | None = attribute(node, "axes")
        if axes is None and len(node.input) > 1 and node.input[1] in self._graph.constants:
            axes = self._graph.constants[node.input[1]].reshape(-1).tolist()
        if not axes or not rank or not attribute(node, "keepdims", 1):
            return False
        places = {int(axis) % rank for axis in axes}
        if _CHANNEL in places:
            # The result has no channels. Sums of floats depend on their order.
            return node.op_type in ("ReduceMax", "ReduceMin") and 0 not in places
        self._join(node.input[0], node.output[0])
        return True

    def _slice(self, node: NodeProto) -> bool:
        source = self._shapes.get(node.input[0], ())
        values = [self._graph.scalar(name) for name in node.input[1:]]
        # Start, end, axis, and a step that may be left out: one of each.
        if len(source) <= _CHANNEL or len(values) < 3 or None in values:
            return False
        start, _, axis, step = (int(value) for value in (*values, 1)[:4] if value is not None)
        if axis % len(source) > _CHANNEL:
            self._join(node.input[0], node.output[0])
            return True
        if axis % len(source) < _CHANNEL or step != 1:
            return False
        self._parts.append((node.input[0], node.output[0], start % source[_CHANNEL]))
        return True

    def _keeps_front(self, node: NodeProto) -> bool:
        """Whether images and channels stay the first two axes: then memory keeps them in the same order."""
        before, after = self._shapes.get(node.input[0], ()), self._shapes.get(node.output[0], ())
        return len(before) > _CHANNEL and before[:2] == after[:2]

    def _size(self, name: str) -> int:
        value = self._graph.constants.get(name)
        return 0 if value is None else int(value.size)

    def _channels(self, name: str) -> int:
        shape = self._shapes.get(name, ())
        return shape[_CHANNEL] if len(shape) > _CHANNEL else 0

    def _join(self, one: str, other: str) -> None:
        self._parent[self._root(one)] = self._root(other)

    def _root(self, name: str) -> str:
        while (above := self._parent.get(name, name)) != name:
            name = above
        return name

    def _by_root(self, items: Sequence[tuple[str, str, int]]) -> dict[str, list[tuple[str, int]]]:
        found: dict[str, list[tuple[str, int]]] = {}
        for tensor, name, axis in items:
            found.setdefault(self._root(tensor), []).append((name, axis))
        return found
