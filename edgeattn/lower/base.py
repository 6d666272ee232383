"""What a lowering pass is, and how a list of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from edgeattn.errors import EdgeAttnError
from edgeattn.onnx_graph import Graph

__all__ = ["EveryGraph", "LoweringError", "LoweringPass", "run_passes"]


class LoweringError(EdgeAttnError):
    """A pass met a graph it cannot take, or left one that breaks its promise."""


@runtime_checkable
class LoweringPass(Protocol):
    """One rewrite of a graph that changes how numbers are spelled, not what they are.

    `requires` and `ensures` return what is wrong, or an empty string. They look at the graph before and
    after the pass, so that a pass that goes wrong is named instead of whatever breaks later.
    """

    @property
    def name(self) -> str:
        """Name in provenance and messages."""
        ...

    def requires(self, graph: Graph) -> str:
        """Say why the pass cannot run on this graph."""
        ...

    def __call__(self, graph: Graph) -> bool:
        """Rewrite the graph in place; return whether anything changed."""
        ...

    def ensures(self, graph: Graph) -> str:
        """Say what the pass left undone or broke."""
        ...


class EveryGraph:
    """A pass that takes every graph, and leaves those that it has nothing to do with."""

    def requires(self, graph: Graph) -> str:
        """Accept every graph."""
        return ""


def run_passes(graph: Graph, passes: Sequence[LoweringPass]) -> list[str]:
    """Run passes in order, checking each one's conditions.

    Returns:
        Names of the passes that changed something.

    Raises:
        LoweringError: If a condition does not hold.
    """
    changed = []
    for item in passes:
        problem = item.requires(graph)
        if problem:
            raise LoweringError(
                f"The lowering pass {item.name!r} cannot take this graph: {problem}. "
                "Export the model again with edgeattn, or lower it for another target."
            )
        if item(graph):
            changed.append(item.name)
            # Passes append nodes, and the next one's shapes are inferred in the order of nodes.
            graph.sort()
        graph.reindex()
        problem = item.ensures(graph)
        if problem:
            raise LoweringError(
                f"The lowering pass {item.name!r} left a graph that breaks its promise: {problem}. "
                "This is a defect in edgeattn; the artifact was not written."
            )
    return changed
