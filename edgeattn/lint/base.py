"""What a lint rule is, and what it finds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

from onnx import NodeProto

from edgeattn.lower.gates import source_of
from edgeattn.onnx_graph import Graph

__all__ = ["LINT_TARGETS", "Evidence", "Finding", "LintTarget", "Rule", "Severity", "View", "name_of"]

LintTarget = Literal["tensorrt", "dla", "openvino", "ort"]
LINT_TARGETS: tuple[LintTarget, ...] = ("tensorrt", "dla", "openvino", "ort")
Severity = Literal["error", "warning"]
"""error: fails to build, or gives wrong numbers. warning: slow, or falls back."""


def name_of(node: NodeProto) -> str:
    """Return a node's name, or that of its first result."""
    return str(node.name or node.output[0])


class View:
    """A graph with its shapes and element types, inferred once, for rules that only read."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Static shape of every tensor that has one."""
        return self.graph.shapes()

    @functools.cached_property
    def types(self) -> dict[str, str]:
        """Element type of every tensor, in NumPy's spelling."""
        return self.graph.element_types()

    @functools.cached_property
    def is_quantized(self) -> bool:
        """Whether there is any QuantizeLinear."""
        return any(node.op_type == "QuantizeLinear" for node in self.graph.nodes)

    def nodes(self, *kinds: str) -> list[NodeProto]:
        """Return the nodes of some operations, in order."""
        return [node for node in self.graph.nodes if node.op_type in kinds]

    def writer(self, tensor: str) -> NodeProto | None:
        """Return the node that computes a tensor, looking through Q/DQ pairs and casts."""
        while True:
            tensor = source_of(self.graph, tensor)
            node = self.graph.producer.get(tensor)
            if node is None or node.op_type != "Cast":
                return node
            tensor = node.input[0]

    def readers(self, tensor: str) -> list[NodeProto]:
        """Return the nodes that use a tensor, looking through Q/DQ pairs and casts."""
        found: list[NodeProto] = []
        for user in self.graph.consumers.get(tensor, []):
            if user.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast"):
                found += self.readers(user.output[0])
            else:
                found.append(user)
        return found


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Where a rule is broken.

    Attributes:
        node: Name of the node.
        tensor: Name of the tensor, or an empty string.
        value: What was seen there.
    """

    node: str
    tensor: str
    value: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """One thing that goes wrong on a target.

    Attributes:
        id: Such as ``"TRT001"``; stays the same for ever.
        title: A few words.
        why: One sentence.
        targets: Where it applies.
        severity: How bad it is.
        find: Reads a graph and returns where it is broken.
        fix: Rewrites a graph in place and returns whether anything changed; None where no rewrite keeps
            the numbers.
        rounds: How the fix rounds numbers, as in "to float16"; empty where it keeps every bit.
    """

    id: str
    title: str
    why: str
    targets: frozenset[str]
    severity: Severity
    find: Callable[[View], Iterable[Evidence]]
    fix: Callable[[Graph], bool] | None = None
    rounds: str = ""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One rule, broken at one place.

    Attributes:
        rule: Its id; title, severity and why are the rule's as well.
        node: Name of the node.
        tensor: Name of the tensor, or an empty string.
        value: What was seen there.
        fixable: Whether the fixes were tried and leave nothing to find here.
        rounds: How the fix rounds numbers; empty where it keeps every bit.
    """

    rule: str
    title: str
    severity: Severity
    why: str
    node: str
    tensor: str
    value: str
    fixable: bool
    rounds: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return dataclasses.asdict(self)
