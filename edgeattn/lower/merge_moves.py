"""Merge chains of reshapes and transposes into one transpose that moves whole runs of memory.

Attention over windows is written as four-dimensional transposes between reshapes, ``(N C H/2, 2, W/2, 2)`` for a window of
two by two. ONNX Runtime runs each of them as many small transposes of single bytes, and starts its threads for each
one: in MobileViT-XXS a third of its time with two threads. Together they are one transpose, and where
channels come out last, as ONNX Runtime keeps them anyway, it copies all channels of a pixel at once. Values are moved, so no
bit changes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.lower.patterns import dequantize_of, same_parameters
from edgeattn.onnx_graph import Graph, attribute, is_clip

__all__ = ["MergeMoves", "merged_axes"]

Shape = tuple[int, ...]
Step = tuple[str, tuple[int, ...]]
"""``("Reshape", shape)`` or ``("Transpose", permutation)``."""

_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
_TO_LAST: Step = ("Transpose", (0, 2, 3, 1))
_TO_FIRST: Step = ("Transpose", (0, 3, 1, 2))


@dataclasses.dataclass
class _Chain:
    """Moves of one tensor, one behind the other.

    Attributes:
        source: What the first one reads.
        result: What the last one, or the pair behind it, writes.
        steps: The moves.
        nodes: They and the pairs between and behind them.
        parameters: Scale and zero point of those pairs; empty without one.
    """

    source: str
    result: str
    steps: list[Step]
    nodes: list[NodeProto]
    parameters: list[str]


@dataclasses.dataclass(frozen=True)
class MergeMoves(EveryGraph):
    """Rewrite chains with several transposes.

    Attributes:
        min_run: Elements that must lie together in what is copied: single ones are moved faster by transposes of two axes.
    """

    name: str = "merge-moves"
    min_run: int = 8

    def __call__(self, graph: Graph) -> bool:
        """Rewrite every chain that gets fewer or longer moves."""
        found = self._found(graph)
        for chain, steps in found:
            _write(graph, chain, steps)
        if found:
            graph.remove_unused()
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that none is left."""
        left = self._found(graph)
        return f"{left[0][0].nodes[0].name!r} begins moves that can be merged" if left else ""

    def _found(self, graph: Graph) -> list[tuple[_Chain, list[Step]]]:
        shapes = graph.shapes()
        found, seen = [], set[int]()
        for node in graph.nodes:
            if id(node) in seen or _step(graph, node, shapes) is None:
                continue
            chain = _chain_from(graph, node, shapes)
            seen.update(map(id, chain.nodes))
            steps = self._merged(shapes[chain.source], chain.steps)
            if steps is not None and _transposes(steps) != _transposes(chain.steps):
                found.append((chain, steps))
        return found

    def _merged(self, shape: Shape, steps: Sequence[Step]) -> list[Step] | None:
        """Return the steps that do the same; None where nothing is known to be faster."""
        if len(_transposes(steps)) < 2:
            return None
        final = _final_shape(shape, steps)
        best: tuple[int, int, list[Step]] | None = None
        for before in (False, True) if len(shape) == 4 else (False,):
            for behind in (False, True) if len(final) == 4 else (False,):
                start = tuple(shape[axis] for axis in _TO_LAST[1]) if before else shape
                whole = [*([_TO_FIRST] if before else []), *steps, *([_TO_LAST] if behind else [])]
                axes = merged_axes(start, whole)
                if axes is None:
                    return None
                sizes, order = axes
                run = sizes[-1] if order and order[-1] == len(sizes) - 1 else 1
                new = [_TO_LAST] if before else []
                if order != tuple(range(len(order))):
                    new += [("Reshape", sizes), ("Transpose", order)]
                end = tuple(final[axis] for axis in _TO_LAST[1]) if behind else final
                new.append(("Reshape", end))
                if behind:
                    new.append(_TO_FIRST)
                if len(_transposes(new)) > len(_transposes(steps)):
                    continue
                if run >= self.min_run and (best is None or (run, -len(new)) > best[:2]):
                    best = (run, -len(new), new)
        return best[2] if best is not None else None


def merged_axes(shape: Shape, steps: Sequence[Step]) -> tuple[Shape, tuple[int, ...]] | None:
    """Return the one transpose that some moves are: sizes of the axes it needs, and their order behind it.

    Args:
        shape: Of what is moved.
        steps: The moves.

    Returns:
        None where a reshape cuts axes that no factors of both shapes fit.
    """
    sizes = dict(enumerate(shape))
    source = [axis for axis, size in sizes.items() if size != 1]
    groups = [[axis] if size != 1 else [] for axis, size in sizes.items()]
    for kind, value in steps:
        if kind == "Transpose":
            groups = [groups[axis] for axis in value]
            continue
        flat, groups = [axis for group in groups for axis in group], []
        for wanted in value:
            group, missing = [], wanted
            while missing > 1:
                if not flat:
                    return None
                axis = flat.pop(0)
                if missing % sizes[axis] == 0:
                    missing //= sizes[axis]
                elif sizes[axis] % missing == 0:
                    outer, inner = len(sizes), len(sizes) + 1
                    sizes[outer], sizes[inner] = missing, sizes[axis] // missing
                    place = source.index(axis)
                    source[place : place + 1] = [outer, inner]
                    flat.insert(0, inner)
                    axis, missing = outer, 1
                else:
                    return None
                group.append(axis)
            groups.append(group)
        if flat:
            return None
    return _joined(source, [axis for group in groups for axis in group], sizes)


def _joined(source: list[int], order: list[int], sizes: dict[int, int]) -> tuple[Shape, tuple[int, ...]]:
    """Take axes together that stay neighbours."""
    place = {axis: index for index, axis in enumerate(source)}
    runs: list[list[int]] = []
    for axis in order:
        if runs and place[axis] == place[runs[-1][-1]] + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    kept = sorted(runs, key=lambda run: place[run[0]])
    return (
        tuple(math.prod(sizes[axis] for axis in run) for run in kept),
        tuple(kept.index(run) for run in runs),
    )


def _transposes(steps: Sequence[Step]) -> list[tuple[int, ...]]:
    return [value for kind, value in steps if kind == "Transpose"]


def _final_shape(shape: Shape, steps: Sequence[Step]) -> Shape:
    for kind, value in steps:
        shape = value if kind == "Reshape" else tuple(shape[axis] for axis in value)
    return shape


def _step(graph: Graph, node: NodeProto, shapes: dict[str, Shape]) -> Step | None:
    """Return what a node moves; None if it does something else, or shapes are not known."""
    before, behind = shapes.get(node.input[0] if node.input else ""), shapes.get(node.output[0])
    if before is None or behind is None or 0 in before or node.output[0] in graph.output_names:
        return None
    if node.op_type == "Transpose":
        order = attribute(node, "perm", None)
        return "Transpose", tuple(order) if order is not None else tuple(range(len(before)))[::-1]
    return ("Reshape", behind) if node.op_type in _RESHAPES else None


def _chain_from(graph: Graph, node: NodeProto, shapes: dict[str, Shape]) -> _Chain:
    source = dequantize_of(graph, node.input[0])
    pair = source if source is not None and _has_one_scale(graph, source) else None
    chain = _Chain(node.input[0], node.output[0], [], [], [])
    step: Step | None = _step(graph, node, shapes)
    while step is not None:
        chain.steps.append(step)
        chain.nodes.append(node)
        chain.result = node.output[0]
        user = graph.only_consumer(chain.result)
        if user is not None and user.op_type == "QuantizeLinear":
            dequantize = graph.only_consumer(user.output[0])
            if (
                dequantize is None
                or dequantize.op_type != "DequantizeLinear"
                or not same_parameters(graph, user, dequantize)
                or not _has_one_scale(graph, user)
                or is_clip(user)
                or (source is not None and pair is None)
                or (pair is not None and not same_parameters(graph, pair, user))
                or {user.output[0], dequantize.output[0]} & set(graph.output_names)
            ):
                break
            pair = dequantize
            chain.nodes += [user, dequantize]
            chain.result = dequantize.output[0]
            user = graph.only_consumer(chain.result)
        node = user if user is not None and user.input[0] == chain.result else NodeProto()
        step = _step(graph, node, shapes) if node.output else None
    chain.parameters = list(pair.input[1:]) if pair is not None else []
    return chain


def _has_one_scale(graph: Graph, node: NodeProto) -> bool:
    """Whether a Q/DQ node has one scale for its tensor, a constant."""
    return graph.scalar(node.input[1]) is not None


def _write(graph: Graph, chain: _Chain, steps: Sequence[Step]) -> None:
    new: list[NodeProto] = []
    name = chain.source
    written = dequantize_of(graph, name) is not None

    def pair(name: str, names: Sequence[str] = ()) -> str:
        if not chain.parameters:
            return name
        integers, real = names or [
            graph.fresh_name(f"{name}.{part}") for part in ("quantized", "dequantized")
        ]
        new.append(helper.make_node("QuantizeLinear", [name, *chain.parameters], [integers], integers))
        new.append(helper.make_node("DequantizeLinear", [integers, *chain.parameters], [real], real))
        return real

    if not written:
        name = pair(name)
    # What comes out keeps its names, by which layers are compared.
    moves = [index for index, node in enumerate(chain.nodes) if node.op_type not in _PAIR]
    last = chain.nodes[moves[-1]].output[0]
    behind = [node.output[0] for node in chain.nodes[moves[-1] + 1 :]]
    for index, (kind, value) in enumerate(steps):
        is_last = index == len(steps) - 1
        result = last if is_last else graph.fresh_name(f"{last}.moved{index}")
        if kind == "Reshape":
            shape = graph.fresh_name(f"{result}.shape")
            graph.constants[shape] = np.asarray(value, np.int64)
            new.append(helper.make_node("Reshape", [name, shape], [result], result))
        else:
            new.append(helper.make_node("Transpose", [name], [result], result, perm=list(value)))
        name = pair(result, behind if is_last else ())
    # By identity: comparing nodes compares all that they hold.
    place = next(index for index, node in enumerate(graph.nodes) if node is chain.nodes[0])
    gone = set(map(id, chain.nodes))
    if name != chain.result:
        graph.replace_input(chain.result, name)
    graph.nodes[place:place] = new
    graph.nodes = [node for node in graph.nodes if id(node) not in gone]
    graph.reindex()
