"""Spell means and maxima over whole axes as chains of pools with small windows.

NVIDIA's DLA has no reductions and no pool with a window above 8. A mean over 28 rows is the mean over 4 groups
of means over 7 rows; the same holds for maxima. The values are equal up to rounding of the sum.
"""

from __future__ import annotations

import dataclasses

from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.onnx_graph import Graph, attribute

__all__ = ["LARGEST_WINDOW", "SplitPools", "window_chain"]

LARGEST_WINDOW = 8
_POOL_OF = {
    "AveragePool": "AveragePool",
    "GlobalAveragePool": "AveragePool",
    "ReduceMean": "AveragePool",
    "MaxPool": "MaxPool",
    "GlobalMaxPool": "MaxPool",
    "ReduceMax": "MaxPool",
}


def window_chain(size: int) -> list[int] | None:
    """Return windows of at most 8 whose product is `size`, largest first; None where there are none."""
    windows = []
    while size > 1:
        window = next((n for n in range(LARGEST_WINDOW, 1, -1) if size % n == 0), None)
        if window is None:
            return None
        windows.append(window)
        size //= window
    return windows


@dataclasses.dataclass(frozen=True)
class SplitPools(EveryGraph):
    """Replace reductions over height or width, and pools over whole axes, by chains of small pools."""

    name: str = "split-pools"

    def __call__(self, graph: Graph) -> bool:
        """Replace every one whose sizes can be split."""
        shapes = graph.shapes()
        changed = False
        for node in list(graph.nodes):
            windows = _windows(graph, node, shapes)
            if windows is None:
                continue
            name, kind = node.input[0], _POOL_OF[node.op_type]
            chain = []
            for index, window in enumerate(windows):
                last = index == len(windows) - 1
                result = node.output[0] if last else graph.fresh_name(f"{node.output[0]}.part{index}")
                chain.append(
                    helper.make_node(
                        kind, [name], [result], name=result, kernel_shape=list(window), strides=list(window)
                    )
                )
                name = result
            place = graph.nodes.index(node)
            graph.nodes[place : place + 1] = chain
            graph.reindex()
            changed = True
        return changed

    def ensures(self, graph: Graph) -> str:
        """Check that none is left that can be split."""
        shapes = graph.shapes()
        left = [node for node in graph.nodes if _windows(graph, node, shapes) is not None]
        return f"{left[0].name!r} still reduces a whole axis at once" if left else ""


def _windows(
    graph: Graph, node: NodeProto, shapes: dict[str, tuple[int, ...]]
) -> list[tuple[int, int]] | None:
    """Return the windows (rows, columns) of the chain for a node, or None where it is to stay."""
    if node.op_type not in _POOL_OF:
        return None
    before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
    if len(before) != 4 or len(after) != 4 or before[:2] != after[:2]:
        return None
    whole = [a if b == 1 else 1 for a, b in zip(before[2:], after[2:], strict=True)]
    if any(b not in (1, a) for a, b in zip(before[2:], after[2:], strict=True)):
        return None
    if node.op_type in ("AveragePool", "MaxPool") and (
        any(attribute(node, "pads", [0] * 4)) or max(attribute(node, "kernel_shape")) <= LARGEST_WINDOW
    ):
        return None
    rows, columns = window_chain(whole[0]), window_chain(whole[1])
    if rows is None or columns is None or not (rows or columns):
        return None
    length = max(len(rows), len(columns))
    rows, columns = ([*part, *[1] * (length - len(part))] for part in (rows, columns))
    return list(zip(rows, columns, strict=True))
