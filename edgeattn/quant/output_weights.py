"""What each of several outputs counts: an error of a tenth of one is as bad as an error of a tenth of another.

A detector's boxes may lie in the hundreds where its scores are below 1. Planning compares answers by sums of squares, and
without weights it would see boxes only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from edgeattn.onnx_graph import Graph, attribute
from edgeattn.onnx_plain import open_plain

__all__ = ["answering_softmax", "output_weights", "weigh_outputs"]

_KEY = "edgeattn.output_weights"
_IMAGES = 16
_SMALLEST_SIZE = 1e-12


def weigh_outputs(model: ModelProto, images: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """Measure what the outputs of a float graph are to be multiplied by, and note it in the graph's metadata.

    All outputs have the same power then, over all of their numbers. A graph with one output is left as it is.

    Args:
        model: fp32 ONNX with one input; its metadata is changed.
        images: Arrays (1, C, H, W), some of which are looked at.
    """
    names = [item.name for item in model.graph.output]
    if len(names) < 2:
        return dict.fromkeys(names, 1.0)
    session = open_plain(model, "weighing outputs")
    power = np.zeros(len(names))
    for image in images[:_IMAGES]:
        for index, value in enumerate(session.run(names, {model.graph.input[0].name: image})):
            power[index] += float(np.square(value, dtype=np.float64).sum())
    mean = np.sqrt(power / min(len(images), _IMAGES))
    weights = {name: 1 / max(float(size), _SMALLEST_SIZE) for name, size in zip(names, mean, strict=True)}
    model.metadata_props.add(key=_KEY, value=json.dumps(weights))
    return weights


def output_weights(graph: Graph) -> dict[str, float]:
    """Return what each output is multiplied by where answers are compared: 1 for one that nothing was noted of."""
    try:
        noted = json.loads(graph.metadata.get(_KEY, "{}"))
    except ValueError:
        noted = {}
    found = {name: noted.get(name) for name in graph.output_names} if isinstance(noted, dict) else {}
    return {
        name: float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else 1.0
        for name, value in ((name, found.get(name)) for name in graph.output_names)
    }


def answering_softmax(graph: Graph) -> NodeProto | None:
    """Return the softmax that turns a classifier's scores into its answer; None where there is none."""
    if len(graph.output_names) != 1:
        return None
    node = graph.producer.get(graph.output_names[0])
    if node is None or node.op_type != "Softmax" or int(attribute(node, "axis", -1)) not in (-1, 1):
        return None
    is_one_row = len(graph.outputs[0].type.tensor_type.shape.dim) == 2
    return node if is_one_row else None
