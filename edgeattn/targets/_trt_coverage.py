"""What of a network TensorRT computes in which type, by layer, by gate and by module of the network.

The graph says what was asked for, and the log's list of kernels what was made of it. A kernel names the graph's
nodes that it computes, so the two can be laid beside each other without running anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.targets._trt_log import LoggedLayer

if TYPE_CHECKING:
    from edgeattn.lower.gates import Gate
    from edgeattn.onnx_graph import Graph

__all__ = ["describe_coverage"]

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_NAMED = 16


def describe_coverage(path: Path, layers: Sequence[LoggedLayer]) -> dict[str, Any]:
    """Return the coverage of a lowered QDQ graph by the kernels of its engine, ready for JSON.

    * ``int8_coverage``: share of the convolutions and matrix products outside gates that run in INT8;
      ``not_int8`` names the others.
    * ``float32_kernels``: kernels that compute in float32 alone, the last layer's result left out.
    * ``kernels_per_gate``, ``reformats_per_gate``: mean of what each gate adds to the network.
    * ``bytes_moved``: of all kernels' inputs and outputs, constants left out.
    * ``float32_nodes``: nodes that stay float32 because float16 cannot hold their values.
    * ``modules``: kernels by type, reformats and bytes of each part of the network, in order.

    Args:
        path: The ONNX file that the engine was built from.
        layers: What the log lists; nothing is returned where it lists nothing.
    """
    if not layers:
        return {}
    import onnx

    from edgeattn.lower.gates import find_gates
    from edgeattn.lower.half_remainder import float32_nodes
    from edgeattn.onnx_graph import Graph

    graph = Graph(onnx.load(str(path)))
    gates = _joined(graph, find_gates(graph))
    in_gates = {name for gate in gates for name in gate}
    wanted = [
        _name(node) for node in graph.nodes if node.op_type in _CONVOLUTIONS and _name(node) not in in_gates
    ]
    covered = {
        name for layer in layers if layer.is_product and layer.inputs[:1] == ("int8",) for name in layer.nodes
    }
    missing = [name for name in wanted if name not in covered]
    last = {_name(graph.producer[name]) for name in graph.output_names if name in graph.producer}
    float32 = [layer.name for layer in layers if layer.is_float32 and not last & {*layer.nodes}]
    costs = [_gate_cost(gate, layers) for gate in gates]
    return {
        "convolutions": len(wanted),
        "int8_coverage": 1 - len(missing) / len(wanted) if wanted else None,
        "not_int8": missing,
        "float32_kernels": len(float32),
        "float32_kernel_names": float32[:_NAMED],
        "gates": len(gates),
        "kernels_per_gate": sum(cost[0] for cost in costs) / len(costs) if costs else None,
        "reformats_per_gate": sum(cost[1] for cost in costs) / len(costs) if costs else None,
        "float32_nodes": float32_nodes(graph)[:_NAMED],
        "bytes_moved": sum(layer.bytes_moved for layer in layers),
        "modules": [dataclasses.asdict(item) for item in _by_module(layers)],
    }


def _name(node: Any) -> str:
    return str(node.name or node.output[0])


def _joined(graph: Graph, gates: Sequence[Gate]) -> list[set[str]]:
    """Return the names of the nodes of every gate; gates that share nodes or a map count as one."""
    groups: list[tuple[set[str], set[str]]] = []
    for gate in gates:
        names = {_name(node) for node in (*gate.nodes, gate.product)}
        # Casts are between nodes of a gate, too, and so is what quantizes its result.
        names |= {f"{name}.quantized" for name in gate.product.output}
        names |= {
            _name(user)
            for out in gate.product.output
            for user in graph.consumers.get(out, [])
            if user.op_type in ("Cast", "QuantizeLinear")
        }
        sources = {gate.source}
        rest = []
        for other, where in groups:
            if other & names or where & sources:
                names |= other
                sources |= where
            else:
                rest.append((other, where))
        groups = [*rest, (names, sources)]
    return [names for names, _ in groups]


def _gate_cost(gate: set[str], layers: Sequence[LoggedLayer]) -> tuple[int, int]:
    """Return how many kernels and reformats a gate adds.

    A kernel in front that also computes nodes of the network itself would be there without the gate.
    """
    places = [index for index, layer in enumerate(layers) if gate & {*layer.nodes}]
    if not places:
        return 0, 0
    # A kernel that names no node moves data for its neighbours.
    touched = [
        layer
        for index, layer in enumerate(layers)
        if index in places or (places[0] < index < places[-1] and not layer.nodes)
    ]
    fused_in_front = bool({*touched[0].nodes} - gate)
    return len(touched) - fused_in_front, sum(layer.is_reformat for layer in touched)


@dataclasses.dataclass
class _Module:
    module: str
    kernels: int = 0
    int8: int = 0
    float16: int = 0
    float32: int = 0
    reformats: int = 0
    bytes_moved: int = 0


def _by_module(layers: Sequence[LoggedLayer]) -> list[_Module]:
    found: dict[str, _Module] = {}
    current = "input"
    for layer in layers:
        # A kernel without nodes moves data for its neighbours.
        current = _module_of(layer) or current
        entry = found.setdefault(current, _Module(current))
        entry.kernels += 1
        entry.reformats += layer.is_reformat
        entry.bytes_moved += layer.bytes_moved
        entry.int8 += layer.is_int8
        entry.float32 += layer.is_float32
        entry.float16 += not layer.is_int8 and not layer.is_float32
    return list(found.values())


def _module_of(layer: LoggedLayer) -> str:
    """Return the first two parts of the path that most of a kernel's nodes lie under, such as ``features.9``."""
    counts: dict[str, int] = {}
    for node in layer.nodes:
        parts = node.split("_token_")[0].strip("/").split("/")
        depth = 2 if len(parts) > 2 and parts[1].isdigit() else 1
        if len(parts) > 1:
            name = ".".join(parts[:depth])
            counts[name] = counts.get(name, 0) + 1
    return max(counts, key=lambda name: counts[name]) if counts else ""
