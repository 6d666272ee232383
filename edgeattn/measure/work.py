"""What a lowered graph must do at least: the operations, their modules, multiplications and bytes.

Q/DQ pairs and reshapes are no operations: they say how a tensor is stored. A tensor that passes through
a pair counts one byte an element, another four; what a runtime moves beyond that is its own choice.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto

    from edgeattn.onnx_graph import Graph

__all__ = ["CATEGORIES", "Operation", "Work", "read_work"]

CATEGORIES = (
    "attention",
    "depthwise convolution",
    "pointwise convolution",
    "other convolution",
    "element-wise add",
    "pool",
    "classifier",
    "conversion",
    "other",
    "unattributed",
)
"""Kinds of work, each layer in one. What belongs to an attention module is attention, whatever it does;
conversions are reorders, reformats, and quantizing apart from a computation."""

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_PASSED = _QUANTIZERS | {"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout"}
_PRODUCTS = frozenset({"Gemm", "MatMul"})
_POOLS = frozenset(
    {"AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"}
)
_SQUASHERS = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "Tanh"})
# Insertion names the module so, and every exact form keeps the path.
_INSERTED = re.compile(r"attention(_\w+)?")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of the lowered graph.

    Attributes:
        name: Of its first output.
        kind: ONNX operator.
        module: Path with slashes; empty outside every module.
        category: One of `CATEGORIES`.
        macs: Multiplications.
        weight_bytes: Of its constants, as stored.
        reads: (tensor, bytes) of every activation that it reads, named by what computes it.
        uses: (reader, bytes) of its result; the reader is None for the caller.
    """

    name: str
    kind: str
    module: str
    category: str
    macs: int
    weight_bytes: int
    reads: tuple[tuple[str, int], ...]
    uses: tuple[tuple[str | None, int], ...]


@dataclasses.dataclass(frozen=True)
class Work:
    """The operations of a lowered graph.

    Attributes:
        operations: By name, in graph order.
        passed: Tensors that only store: what computes them, or an empty string for none.
        attentions: Paths of the attention modules.
        modules: All module paths.
        tensors: By node name, what the node computes: some runtimes name one, some the other.
    """

    operations: dict[str, Operation]
    passed: dict[str, str]
    attentions: frozenset[str]
    modules: frozenset[str]
    tensors: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def attention_of(self, module: str) -> str:
        """Return the path of the attention module that a module is or lies in, or an empty string."""
        parts = module.split("/")
        paths = ("/".join(parts[:end]) for end in range(1, len(parts) + 1))
        return next((path for path in paths if path in self.attentions), "")

    def group_of(self, module: str) -> str:
        """Return the block that a module lies in, or its attention module: where people look for time.

        A block's path ends with its number: ``features/2`` of ``features/2/conv/0/0``, ``features/2/1``
        of ``features/2/1/block/3/0``.
        """
        if found := self.attention_of(module):
            return found
        parts = module.split("/")
        start = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts))
        end = next((p for p in range(start, len(parts)) if not parts[p].isdigit()), len(parts))
        inner = any(other.startswith(f"{module}/") for other in self.modules)
        if end == len(parts) > 1 and start < end and not inner:
            end -= 1  # the last number is that of a layer in a Sequential
        return "/".join(parts[:end])


def read_work(graph: Graph) -> Work:
    """Read what a lowered graph, float or quantized, must do."""
    return _Reader(graph).read()


class _Reader:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.shapes = graph.shapes()
        self.nodes = {n.output[0]: n for n in graph.nodes if self._is_operation(n)}
        self.modules = {name: _module_of(node) for name, node in self.nodes.items()}

    def read(self) -> Work:
        attentions = self._attentions()
        modules = frozenset(module for module in self.modules.values() if module)
        reads = {name: self._reads(node) for name, node in self.nodes.items()}
        uses: dict[str, list[tuple[str | None, int]]] = {name: [] for name in self.nodes}
        for reader, tensors in reads.items():
            for tensor, size in tensors:
                uses.get(tensor, []).append((reader, size))
        for output in self.graph.output_names:
            root, _ = self._stored(output)
            uses.get(root, []).append((None, 4 * self._elements(root)))
        bare = Work({}, {}, attentions, modules)
        operations = {
            name: Operation(
                name,
                node.op_type,
                self.modules[name],
                "attention" if bare.attention_of(self.modules[name]) else self._category(node),
                self._macs(node),
                sum(self._constant_bytes(tensor) for tensor in node.input),
                reads[name],
                tuple(uses[name]),
            )
            for name, node in self.nodes.items()
        }
        passed = {}
        for node in self.graph.nodes:
            if node.op_type in _PASSED and node.output[0] not in self.nodes:
                root, _ = self._stored(node.output[0])
                passed[node.output[0]] = root if root in self.nodes else ""
        by_node = {node.name: node.output[0] for node in self.graph.nodes if node.name}
        return Work(operations, passed, attentions, modules, by_node)

    def _is_operation(self, node: NodeProto) -> bool:
        if node.op_type == "QuantizeLinear":
            # The caller gives floats, so that reading and quantizing them is work of the network.
            return node.input[0] in self.graph.input_names
        return node.op_type not in _PASSED

    def _stored(self, tensor: str) -> tuple[str, bool]:
        """Return what computes a tensor (or the graph input), and whether it is stored quantized."""
        quantized = False
        while (node := self.graph.producer.get(tensor)) is not None:
            quantized = quantized or node.op_type in _QUANTIZERS
            if tensor in self.nodes or node.op_type not in _PASSED:
                return node.output[0], quantized
            tensor = node.input[0]
        return tensor, quantized

    def _elements(self, tensor: str) -> int:
        return math.prod(self.shapes.get(tensor, (0,)))

    def _reads(self, node: NodeProto) -> tuple[tuple[str, int], ...]:
        found: dict[str, int] = {}
        for tensor in node.input[:1] if node.op_type == "QuantizeLinear" else node.input:
            if not tensor:
                continue
            root, quantized = self._stored(tensor)
            if self.graph.constant(root) is None:
                found[root] = max(found.get(root, 0), (1 if quantized else 4) * self._elements(root))
        return tuple(found.items())

    def _constant_bytes(self, tensor: str) -> int:
        value = self.graph.constant(self._stored(tensor)[0]) if tensor else None
        return int(value.nbytes) if value is not None else 0

    def _macs(self, node: NodeProto) -> int:
        outputs = self._elements(node.output[0])
        if node.op_type == "Conv":
            return outputs * math.prod(self.shapes.get(node.input[1], (0,))[1:])
        if node.op_type in _PRODUCTS:
            inner = self.shapes.get(node.input[0], (0,))
            place = 0 if _integer(node, "transA", 0) else -1
            return outputs * inner[place]
        return 0

    def _category(self, node: NodeProto) -> str:
        if node.op_type == "Conv":
            weight = self.shapes.get(node.input[1], (0, 0))
            if _integer(node, "group", 1) > 1 and weight[1] == 1:
                return "depthwise convolution"
            pointwise = _integer(node, "group", 1) == 1 and set(weight[2:]) == {1}
            return "pointwise convolution" if pointwise else "other convolution"
        if node.op_type in _PRODUCTS:
            return "classifier"
        if node.op_type in _POOLS:
            return "pool"
        if node.op_type == "QuantizeLinear":
            return "conversion"
        both = all(self.graph.constant(self._stored(name)[0]) is None for name in node.input)
        return "element-wise add" if node.op_type in ("Add", "Sum") and both else "other"

    def _attentions(self) -> frozenset[str]:
        """Return the paths of the attention modules.

        An engine may lie anywhere without the run that made it, and neither its manifest nor a run's
        plan names the modules, so the graph has to tell. Insertion's own name settles what this package
        inserted, also parts that no gate shows (Triplet's mean of branches). Gates of other origin, the
        Squeeze-and-Excitation of an EfficientNet or of somebody's own network, are found by structure.
        """
        paths = set()
        for module in self.modules.values():
            parts = module.split("/")
            at = next((i for i, part in enumerate(parts) if _INSERTED.fullmatch(part)), None)
            if at is not None:
                paths.add("/".join(parts[: at + 1]))
        for name, node in self.nodes.items():
            inside = any(
                self.modules[name].startswith(f"{path}/") or self.modules[name] == path for path in paths
            )
            if node.op_type == "Mul" and not inside and (gate := self._gate(node)):
                common = _common([self.modules[part] for part in gate])
                if common and not any(other.startswith(f"{common}/attention") for other in paths):
                    paths.add(common)
        return frozenset(paths)

    def _gate(self, mul: NodeProto) -> list[str]:
        """Return the operations of a gate: ``x * squash(f(x))`` where f has weights; SiLU has none."""
        roots = [self._stored(name)[0] for name in mul.input]
        for x, gate in (roots, roots[::-1]):
            if gate not in self.nodes or self.nodes[gate].op_type not in _SQUASHERS:
                continue
            found, waiting, reaches = [gate], [gate], False
            while waiting and len(found) < 32:
                for tensor, _ in self._reads(self.nodes[waiting.pop()]):
                    reaches = reaches or tensor == x
                    if tensor != x and tensor in self.nodes and tensor not in found:
                        found.append(tensor)
                        waiting.append(tensor)
            if reaches and not waiting and any(self._macs(self.nodes[name]) for name in found):
                return found
        return []


def _integer(node: NodeProto, name: str, default: int) -> int:
    return next((item.i for item in node.attribute if item.name == name), default)


def _module_of(node: NodeProto) -> str:
    """Return the module path of a node.

    The weight tells best: a convolution carries the name of the activation that is fused into it.
    """
    for name in node.input[1:2] if node.op_type in (*_PRODUCTS, "Conv") else ():
        path, found, _ = name.partition(".weight")
        if found:
            return str(path).strip("/").replace(".", "/")
    parts = node.output[0].split("/")
    return "/".join(part for part in parts[:-2] if part) if len(parts) > 2 else ""


def _common(paths: Iterable[str]) -> str:
    split = [path.split("/") for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared)
