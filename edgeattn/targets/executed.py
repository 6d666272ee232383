"""The graph that a runtime executes: which of the model's operations each executed layer came from.

A runtime fuses, splits and renames what it is given, and its profile shows only the result. The two CPU
runtimes can also show the graph behind it, which is what ties times to modules. A session may therefore
have a method ``executed_graph``; like ``properties`` it is no part of the protocol.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeattn.targets.base import Session

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["ExecutedLayer", "executed_graph", "openvino_layers", "ort_layers"]


@dataclasses.dataclass(frozen=True)
class ExecutedLayer:
    """One layer of the graph that a runtime executes.

    Attributes:
        name: As in `LayerTime`, or empty where the runtime has not named it in its graph.
        kind: As the runtime spells it.
        originals: Names of nodes or tensors of the model that it came from, as far as it tells.
        producers: Places, in the same sequence, of the layers whose results it reads.
    """

    name: str
    kind: str
    originals: tuple[str, ...] = ()
    producers: tuple[int, ...] = ()


def executed_graph(session: Session) -> Sequence[ExecutedLayer]:
    """Return the layers that a session executes, in order; empty where its runtime cannot tell."""
    describe = getattr(session, "executed_graph", None)
    return tuple(describe()) if callable(describe) else ()


def ort_layers(model: ModelProto) -> list[ExecutedLayer]:
    """Read the graph that ONNX Runtime optimised and saved.

    Args:
        model: Its layers are the executed ones, and its tensors keep the names of the original where
            they are still the same tensor.
    """
    places: dict[str, int] = {}
    for place, node in enumerate(model.graph.node):
        places.update(dict.fromkeys(node.output, place))
    return [
        ExecutedLayer(
            node.name,
            node.op_type,
            tuple(dict.fromkeys(name for name in (*node.output, node.name) if name)),
            tuple(dict.fromkeys(places[name] for name in node.input if name in places)),
        )
        for node in model.graph.node
    ]


def openvino_layers(runtime_model: Any) -> list[ExecutedLayer]:
    """Read OpenVINO's runtime model, which lists the original layers of every one that it fused."""
    places: dict[str, int] = {}
    layers: list[ExecutedLayer] = []
    for node in runtime_model.get_ordered_ops():
        info = node.get_rt_info()
        kind = info["layerType"].astype(str)
        if kind == "Const":
            continue
        originals = info["originalLayersNames"].astype(str).split(",")
        sources = (value.get_source_output().get_node().get_friendly_name() for value in node.inputs())
        name = node.get_friendly_name()
        layers.append(
            ExecutedLayer(
                name,
                kind,
                tuple(original for original in originals if original),
                tuple(dict.fromkeys(places[source] for source in sources if source in places)),
            )
        )
        places[name] = len(layers) - 1
    return layers
