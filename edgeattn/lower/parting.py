"""What passes share that keep a runtime from moving, fusing or leaving out an operation: an identity before it."""

from __future__ import annotations

import abc
from typing import ClassVar

from onnx import NodeProto, helper

from edgeattn.lower.base import EveryGraph
from edgeattn.onnx_graph import Graph

__all__ = ["PartingPass"]


class PartingPass(EveryGraph, abc.ABC):
    """Put a leaky ReLU of slope 1 before some operations: no number changes, and no runtime fuses across it.

    Attributes:
        left: What is wrong with an operation that has none.
        suffix: Of the names of what is written.
    """

    left: ClassVar[str]
    suffix: ClassVar[str] = "parted"

    @abc.abstractmethod
    def found(self, graph: Graph) -> list[NodeProto]:
        """Return the operations whose first input is to be kept apart from what writes it."""

    def __call__(self, graph: Graph) -> bool:
        """Insert the identities."""
        found = self.found(graph)
        for node in found:
            source = node.input[0]
            result = graph.fresh_name(f"{source}.{self.suffix}")
            graph.add([helper.make_node("LeakyRelu", [source], [result], result, alpha=1.0)])
            graph.reroute(source, result, [node])
        return bool(found)

    def ensures(self, graph: Graph) -> str:
        """Check that none is left."""
        found = self.found(graph)
        return f"{found[0].name!r} {self.left}" if found else ""
