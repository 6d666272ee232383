"""Apply a plan's changes of constants to the float graph that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import ModelError
from edgeattn.onnx_graph import Graph
from edgeattn.quant.equalize import apply_channel_scales
from edgeattn.quant.plan import Profile, QuantPlan, quantize_weight
from edgeattn.quant.rounding import apply_roundings

__all__ = ["apply_plan_constants", "weight_integers"]


def apply_plan_constants(graph: Graph, plan: QuantPlan, profile: Profile) -> None:
    """Change weights and biases in place, as the plan says for `profile`.

    The result is an ordinary float graph with the same nodes that computes nearly the same function:
    equalization does not change it, the rest changes what quantization is known to change back.

    Args:
        graph: The canonical fp32 graph that was calibrated, with its own constants.
        plan: Channel scales, then roundings of weights and shifts of biases.
        profile: Whose shifts.

    Raises:
        ModelError: If the plan does not fit the graph.
    """
    apply_channel_scales(graph, plan.channel_scales)
    apply_roundings(graph, plan)
    for name, shift in plan.bias_shift.get(profile, {}).items():
        bias = graph.constants.get(name)
        if bias is None or bias.shape != (len(shift),):
            raise ModelError(
                f"The plan shifts a bias {name!r} of {len(shift)} channels that the graph lacks. "
                "A plan belongs to one graph: calibrate this one."
            )
        graph.constants[name] = (bias + np.asarray(shift)).astype(np.float32)


def weight_integers(graph: Graph, plan: QuantPlan, axes: Mapping[str, int]) -> dict[str, NDArray[np.int8]]:
    """Return every planned weight on its grid.

    Args:
        graph: After `apply_plan_constants`.
        plan: The plan.
        axes: Weight -> axis of its output channels.
    """
    return {
        name: quantize_weight(graph.constants[name], np.asarray(scales, np.float32), axes[name])
        for name, scales in plan.weights.items()
    }
