"""A thin, indexed view of an ONNX graph for passes that read and rewrite it.

Every pass in `export`, `quant` and `lower` works on this view, so that look-ups of producers,
consumers, constants and shapes are written once. Models are plain `onnx.ModelProto` at rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeattn.artifact import IoSpec
from edgeattn.errors import ModelError

__all__ = [
    "Graph",
    "attribute",
    "clip_bounds",
    "io_spec",
    "is_clip",
    "mark_clip",
    "take_pads",
    "tensor_dtype",
]

Array = NDArray[Any]

_CLIPS = "edgeattn.clips"


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute, or `default`; strings are decoded."""
    for item in node.attribute:
        if item.name == name:
            value = helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else value
    return default


def mark_clip(quantize: NodeProto) -> None:
    """Note that a QuantizeLinear stands for a clip as well: who removes it has to put the clip back."""
    quantize.metadata_props.add(key=_CLIPS, value="true")


def is_clip(quantize: NodeProto) -> bool:
    """Return whether a QuantizeLinear stands for a clip as well, see `mark_clip`."""
    return any(item.key == _CLIPS for item in quantize.metadata_props)


def is_depthwise(conv: NodeProto, weight_shape: Sequence[int]) -> bool:
    """Return whether a convolution of maps makes one channel of each by itself."""
    groups = int(attribute(conv, "group", 1))
    return groups > 1 and len(weight_shape) == 4 and tuple(weight_shape[:2]) == (groups, 1)


def take_pads(conv: NodeProto) -> list[int]:
    """Make a convolution of maps pad nothing, and return what it padded: (top, left, bottom, right)."""
    sides = [int(side) for side in attribute(conv, "pads", [0, 0, 0, 0])]
    kept = [item for item in conv.attribute if item.name != "pads"]
    del conv.attribute[:]
    conv.attribute.extend(kept)
    return sides


def tensor_dtype(element_type: int) -> str:
    """Return the NumPy name of an ONNX element type."""
    return str(np.dtype(helper.tensor_dtype_to_np_dtype(element_type)))


class Graph:
    """Nodes, constants and the edges between them, by tensor name.

    Args:
        model: Read once; call `to_model` for a new model holding the changes.
    """

    def __init__(self, model: ModelProto) -> None:
        self._template = model
        self.nodes: list[NodeProto] = [_copy(node) for node in model.graph.node]
        self.constants: dict[str, Array] = {
            item.name: numpy_helper.to_array(item) for item in model.graph.initializer
        }
        self.inputs: list[onnx.ValueInfoProto] = [
            item for item in model.graph.input if item.name not in self.constants
        ]
        self.outputs: list[onnx.ValueInfoProto] = list(model.graph.output)
        self.metadata: dict[str, str] = {item.key: item.value for item in model.metadata_props}
        self._lift_constants()
        self.reindex()

    @property
    def opset(self) -> int:
        """Version of the default ONNX domain."""
        for item in self._template.opset_import:
            if item.domain in ("", "ai.onnx"):
                return int(item.version)
        raise ModelError("The model does not import the default ONNX domain; export it again.")

    @property
    def output_names(self) -> list[str]:
        """Names of the graph's outputs."""
        return [item.name for item in self.outputs]

    @property
    def input_names(self) -> list[str]:
        """Names of the graph's inputs, constants excluded."""
        return [item.name for item in self.inputs]

    @property
    def producer(self) -> dict[str, NodeProto]:
        """The node that writes each tensor."""
        return self._maps()[0]

    @property
    def consumers(self) -> dict[str, list[NodeProto]]:
        """The nodes that read each tensor, in the order of nodes."""
        return self._maps()[1]

    def reindex(self) -> None:
        """Say that nodes changed: the producer and consumer maps are rebuilt when they are next asked for."""
        self._index: tuple[dict[str, NodeProto], dict[str, list[NodeProto]]] | None = None

    def _maps(self) -> tuple[dict[str, NodeProto], dict[str, list[NodeProto]]]:
        if self._index is None:
            producer: dict[str, NodeProto] = {}
            consumers: dict[str, list[NodeProto]] = {}
            for node in self.nodes:
                for name in node.output:
                    if name:
                        producer[name] = node
                for name in node.input:
                    if name:
                        consumers.setdefault(name, []).append(node)
            self._index = producer, consumers
        return self._index

    def constant(self, name: str) -> Array | None:
        """Return a constant's value, or None for an activation."""
        return self.constants.get(name)

    def scalar(self, name: str) -> float | None:
        """Return the value of a one-element constant, or None."""
        value = self.constants.get(name)
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def only_consumer(self, name: str) -> NodeProto | None:
        """Return the single node that reads a tensor, or None if several do or it is an output."""
        users = self.consumers.get(name, [])
        return users[0] if len(users) == 1 and name not in self.output_names else None

    def fresh_name(self, stem: str) -> str:
        """Return a tensor name that starts with `stem` and is not in use."""
        name, number = stem, 0
        while name in self.constants or name in self.producer or name in self.input_names:
            number += 1
            name = f"{stem}_{number}"
        return name

    def replace_input(self, old: str, new: str, nodes: Iterable[NodeProto] | None = None) -> None:
        """Make consumers of `old` (all, or the given ones) read `new`."""
        for node in list(self.consumers.get(old, [])) if nodes is None else nodes:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new
        self.reindex()

    def add(self, nodes: Iterable[NodeProto], place: int | None = None) -> None:
        """Put nodes into the graph, at the end or before `place`, without indexing everything anew."""
        producer, consumers = self._maps()
        new = list(nodes)
        where = len(self.nodes) if place is None else place
        self.nodes[where:where] = new
        for node in new:
            producer.update((name, node) for name in node.output if name)
            for name in node.input:
                if name:
                    consumers.setdefault(name, []).append(node)

    def replace(self, node: NodeProto, *new: NodeProto) -> None:
        """Put nodes, or none, in the place of one."""
        # By identity: comparing nodes compares all that they hold.
        place = next(index for index, other in enumerate(self.nodes) if other is node)
        self.nodes = [*self.nodes[:place], *new, *self.nodes[place + 1 :]]
        self.reindex()

    def copy_node(self, node: NodeProto, stem: str) -> NodeProto:
        """Add a copy of a node with one result, before all others, and return it; its result starts with `stem`."""
        own = NodeProto()
        own.CopyFrom(node)
        own.output[0] = own.name = self.fresh_name(stem)
        self.nodes.insert(0, own)
        self.reindex()
        return own

    def reroute(self, old: str, new: str, nodes: Iterable[NodeProto]) -> None:
        """Make indexed consumers of `old` read `new`: `replace_input` at the cost of these nodes only."""
        consumers = self.consumers
        for node in nodes:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new
                    consumers.setdefault(new, []).append(node)
            consumers[old] = [user for user in consumers.get(old, []) if user is not node]

    def rename(self, names: Mapping[str, str]) -> None:
        """Rename tensors throughout; graph inputs and outputs keep their names."""
        fixed = set(self.input_names) | set(self.output_names)
        names = {old: new for old, new in names.items() if old not in fixed}
        for node in self.nodes:
            for index, name in enumerate(node.input):
                node.input[index] = names.get(name, name)
            for index, name in enumerate(node.output):
                node.output[index] = names.get(name, name)
        self.constants = {names.get(name, name): value for name, value in self.constants.items()}
        self.reindex()

    def remove_unused(self) -> None:
        """Drop nodes whose results nobody reads, and constants that no node reads."""
        while True:
            wanted = {name for node in self.nodes for name in node.input} | set(self.output_names)
            kept = [node for node in self.nodes if any(name in wanted for name in node.output)]
            if len(kept) == len(self.nodes):
                break
            self.nodes = kept
        self.constants = {name: value for name, value in self.constants.items() if name in wanted}
        self.reindex()

    def sort(self) -> None:
        """Put nodes in an order in which every input is computed before it is read.

        The order is that of reading the list again and again, each time taking the nodes that are ready: nodes
        keep their places as far as they can.
        """
        place = {id(node): index for index, node in enumerate(self.nodes)}
        source = {name: node for node in self.nodes for name in node.output if name}
        given = set(self.constants) | set(self.input_names) | {""}
        needs = {
            id(node): [source[name] for name in node.input if name not in given and name in source]
            for node in self.nodes
        }
        missing = [n for n in self.nodes if any(i not in given and i not in source for i in n.input)]
        waiting = {key: len(before) for key, before in needs.items()}
        users: dict[int, list[NodeProto]] = {}
        for node in self.nodes:
            for before in needs[id(node)]:
                users.setdefault(id(before), []).append(node)
        ready = [node for node in self.nodes if not waiting[id(node)]]
        # In which reading a node's turn comes: one later than what stands behind it in the list.
        turn = dict.fromkeys(place, 0)
        done = 0
        while ready:
            node = ready.pop()
            done += 1
            for user in users.get(id(node), ()):
                late = place[id(node)] > place[id(user)]
                turn[id(user)] = max(turn[id(user)], turn[id(node)] + late)
                waiting[id(user)] -= 1
                if not waiting[id(user)]:
                    ready.append(user)
        stuck = missing or [node for node in self.nodes if waiting[id(node)]]
        if stuck or done < len(self.nodes):
            raise ModelError(f"The graph has a cycle or a missing tensor near {stuck[0].name!r}.")
        self.nodes = sorted(self.nodes, key=lambda node: (turn[id(node)], place[id(node)]))
        self.reindex()

    def io_specs(self) -> tuple[tuple[IoSpec, ...], tuple[IoSpec, ...]]:
        """Return the specs of inputs and outputs.

        Raises:
            ModelError: If a dimension is not a fixed positive number.
        """
        return tuple(map(io_spec, self.inputs)), tuple(map(io_spec, self.outputs))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Infer the static shape of every tensor that has one."""
        model = onnx.shape_inference.infer_shapes(self.to_model(), data_prop=True)
        found: dict[str, tuple[int, ...]] = {n: tuple(v.shape) for n, v in self.constants.items()}
        for item in (*model.graph.input, *model.graph.output, *model.graph.value_info):
            dims = item.type.tensor_type.shape.dim
            if item.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
                found[item.name] = tuple(int(d.dim_value) for d in dims)
        return found

    def element_types(self) -> dict[str, str]:
        """Infer the element type of every tensor that has one, in NumPy's spelling."""
        model = onnx.shape_inference.infer_shapes(self.to_model(), data_prop=True)
        found = {name: str(value.dtype) for name, value in self.constants.items()}
        for item in (*model.graph.input, *model.graph.output, *model.graph.value_info):
            if item.type.HasField("tensor_type") and item.type.tensor_type.elem_type:
                found[item.name] = tensor_dtype(item.type.tensor_type.elem_type)
        return found

    def to_model(self, extra_outputs: Iterable[str] = ()) -> ModelProto:
        """Return a new model with the present nodes and constants.

        Args:
            extra_outputs: Float tensors to add to the graph's outputs.
        """
        outputs = list(self.outputs) + [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in extra_outputs
        ]
        graph = helper.make_graph(
            self.nodes,
            self._template.graph.name or "edgeattn",
            self.inputs,
            outputs,
            initializer=[numpy_helper.from_array(np.asarray(v), n) for n, v in self.constants.items()],
        )
        model = helper.make_model(
            graph, opset_imports=list(self._template.opset_import), producer_name="edgeattn"
        )
        model.ir_version = min(self._template.ir_version or 8, 10)
        for key, value in self.metadata.items():
            model.metadata_props.add(key=key, value=value)
        return model

    def _lift_constants(self) -> None:
        kept = []
        for node in self.nodes:
            value = attribute(node, "value") if node.op_type == "Constant" else None
            if value is None:
                kept.append(node)
            else:
                self.constants[node.output[0]] = numpy_helper.to_array(value)
        self.nodes = kept


def _copy(node: NodeProto) -> NodeProto:
    clone = NodeProto()
    clone.CopyFrom(node)
    return clone


def clip_bounds(graph: Graph, node: NodeProto | None) -> tuple[float, float] | None:
    """Return the ends of a Clip or Relu, infinite where it has none; None for anything else, and for computed ends."""
    if node is None or node.op_type not in ("Clip", "Relu"):
        return None
    if node.op_type == "Relu":
        return 0.0, math.inf
    low, high = (
        graph.scalar(name) if name else absent
        for name, absent in zip((*node.input[1:3], "", "")[:2], (-math.inf, math.inf), strict=True)
    )
    return None if low is None or high is None else (low, high)


def io_spec(item: onnx.ValueInfoProto) -> IoSpec:
    """Return name, shape and type of a graph's input or output.

    Raises:
        ModelError: If its shape is not fixed.
    """
    tensor = item.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else 0 for d in tensor.shape.dim]
    if not dims or any(d <= 0 for d in dims):
        shown = [d.dim_value or d.dim_param or "?" for d in tensor.shape.dim]
        raise ModelError(
            f"Tensor {item.name!r} has the dynamic shape {shown}; engines need fixed sizes. "
            "Say which with --input-shape 1,3,224,224 (`edgeattn quantize`, `edgeattn parity`), or export the model again "
            "with fixed sizes."
        )
    return IoSpec(item.name, tuple(int(d) for d in dims), tensor_dtype(tensor.elem_type))
