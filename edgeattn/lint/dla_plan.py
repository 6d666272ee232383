"""Which parts of a network DLA runs, and in how many loadables.

TensorRT cuts a network where an operation falls back to the GPU. Operations that run on DLA and are connected
make one loadable, unless a GPU operation lies between them; every cut costs a hand-over, and a core holds 16
loadables at most. Q/DQ nodes count for nothing: for DLA they are to be turned into scales beside the network.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from onnx import NodeProto

from edgeattn.lint.base import View, name_of
from edgeattn.lint.dla_support import MAX_LOADABLES, TRANSPARENT, why_not_dla
from edgeattn.lower.explicit_swish import ExplicitSwish
from edgeattn.lower.split_pools import SplitPools
from edgeattn.onnx_graph import Graph

__all__ = ["DlaPart", "DlaPlan", "choose_for_dla", "plan_dla"]


@dataclasses.dataclass(frozen=True)
class DlaPart:
    """Connected operations on one device.

    Attributes:
        device: ``"dla"`` or ``"gpu"``.
        nodes: Names of its operations, in order.
        reasons: Why they are not on DLA, each with its count.
    """

    device: str
    nodes: tuple[str, ...]
    reasons: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class DlaPlan:
    """A network cut into DLA loadables and GPU parts.

    Attributes:
        parts: In order of execution.
        operations: Of the network, Q/DQ left out.
        on_dla: How many of them DLA runs.
    """

    parts: tuple[DlaPart, ...]
    operations: int
    on_dla: int

    @property
    def loadables(self) -> int:
        """Number of DLA loadables."""
        return sum(part.device == "dla" for part in self.parts)

    @property
    def fits(self) -> bool:
        """Whether one core can hold all loadables."""
        return self.loadables <= MAX_LOADABLES

    @property
    def gpu_parts(self) -> int:
        """Number of parts that fall back to the GPU."""
        return len(self.parts) - self.loadables

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return {
            "loadables": self.loadables,
            "limit": MAX_LOADABLES,
            "fits": self.fits,
            "gpu_parts": self.gpu_parts,
            "operations": self.operations,
            "on_dla": self.on_dla,
            "parts": [
                {"device": part.device, "nodes": list(part.nodes), "reasons": dict(part.reasons)}
                for part in self.parts
            ],
        }


def plan_dla(graph: Graph, *, respelled: bool = False) -> DlaPlan:
    """Cut a graph by the published support tables.

    Args:
        graph: With fixed shapes; not changed.
        respelled: Plan the graph with means and maxima spelled as chains of small pools, and h-swish as
            products and clips.
    """
    if respelled:
        graph = Graph(graph.to_model())
        SplitPools()(graph)
        ExplicitSwish()(graph)
    graph = Graph(graph.to_model())
    graph.sort()
    view = View(graph)
    nodes = [node for node in graph.nodes if node.op_type not in TRANSPARENT]
    # Weights behind a DequantizeLinear, and casts of constants, are no operations either.
    reasons = {name_of(node): why_not_dla(view, node) for node in nodes}
    stages: dict[str, int] = {}
    inputs: dict[str, list[str]] = {}
    for node in nodes:
        name = name_of(node)
        writers = [writer for item in node.input if (writer := _writer(view, item)) is not None]
        inputs[name] = [name_of(writer) for writer in writers if name_of(writer) in stages]
        stages[name] = max(
            (stages[item] + (bool(reasons[item]) != bool(reasons[name])) for item in inputs[name]), default=0
        )
    parts = _components(nodes, reasons, stages, inputs)
    return DlaPlan(parts, len(nodes), sum(not reason for reason in reasons.values()))


def choose_for_dla(candidates: Mapping[str, Graph]) -> tuple[str, dict[str, DlaPlan]]:
    """Return the form of a network that DLA runs best, and the plan of every form.

    Fewest loadables and GPU parts count first (each boundary is a hand-over), then most operations on DLA.

    Args:
        candidates: One graph for each form of the same network, by the form's name.
    """
    plans = {name: plan_dla(graph, respelled=True) for name, graph in candidates.items()}
    return min(
        plans, key=lambda name: (len(plans[name].parts), plans[name].on_dla - plans[name].operations)
    ), plans


def _writer(view: View, tensor: str) -> NodeProto | None:
    while True:
        node = view.graph.producer.get(tensor)
        if node is None or node.op_type not in TRANSPARENT:
            return node
        tensor = node.input[0]


def _components(
    nodes: Sequence[NodeProto],
    reasons: Mapping[str, str],
    stages: Mapping[str, int],
    inputs: Mapping[str, list[str]],
) -> tuple[DlaPart, ...]:
    """Group connected operations of one stage; operations of a stage are all on one side of every cut."""
    owner = {name_of(node): name_of(node) for node in nodes}

    def find(name: str) -> str:
        while owner[name] != name:
            name = owner[name]
        return name

    for name, writers in inputs.items():
        for writer in writers:
            if stages[writer] == stages[name] and bool(reasons[writer]) == bool(reasons[name]):
                owner[find(name)] = find(writer)
    groups: dict[str, list[str]] = {}
    for node in nodes:
        groups.setdefault(find(name_of(node)), []).append(name_of(node))
    kinds = {name_of(node): node.op_type for node in nodes}
    parts = []
    for names in sorted(groups.values(), key=lambda names: stages[names[0]]):
        found = Counter(f"{kinds[name]}: {reasons[name]}" for name in names if reasons[name])
        parts.append(DlaPart("gpu" if reasons[names[0]] else "dla", tuple(names), dict(found)))
    return tuple(parts)
