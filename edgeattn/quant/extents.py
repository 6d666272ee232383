"""Measure how large the activations of a float graph become on calibration images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeattn.onnx_graph import Graph
from edgeattn.quant.calibrate import collect_statistics
from edgeattn.quant.equalize import apply_channel_scales
from edgeattn.quant.float_nodes import masked_nodes
from edgeattn.quant.plan import QuantPlan

__all__ = ["with_extents"]

EXTENT_IMAGES = 32
_ENDLESS = 1e30  # what a plan may hold at most: such a tensor stays float32
_ZERO = 1e-6  # a tensor that never leaves zero is described by an extent this small


def with_extents(plan: QuantPlan, graph: Graph, images: Sequence[NDArray[np.float32]]) -> QuantPlan:
    """Return the plan with the largest magnitude of every activation of the graph that it belongs to.

    Args:
        plan: From post-training quantization.
        graph: The canonical fp32 graph.
        images: Arrays (1, C, H, W); `EXTENT_IMAGES` of them are run.

    Raises:
        DataError: If there is no image, or a tensor becomes NaN or infinite.
    """
    adjusted = Graph(graph.to_model())
    apply_channel_scales(adjusted, plan.channel_scales)
    step = max(1, len(images) // EXTENT_IMAGES)
    chosen = images[::step][:EXTENT_IMAGES]
    scores = [node for node in masked_nodes(adjusted, -_ENDLESS) if node.op_type != "Softmax"]
    masked = {name for node in scores for name in node.output}
    measured = [name for name in _float_activations(adjusted) if name not in masked]
    found = collect_statistics(adjusted.to_model(), measured, chosen, histograms=False)
    largest = {name: max(-item.low, item.high) for name, item in found.items()} | dict.fromkeys(
        masked, _ENDLESS
    )
    extents = {name: value if value > _ZERO else 0.0 for name, value in largest.items()}
    return plan.model_copy(update={"extents": extents})


def _float_activations(graph: Graph) -> list[str]:
    types = graph.element_types()
    written = [name for node in graph.nodes for name in node.output if name]
    return [name for name in (*graph.input_names, *written) if types.get(name, "float32") == "float32"]
