"""Post-training quantization: from a float graph and calibration images to a `QuantPlan`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeattn.onnx_graph import Graph
from edgeattn.quant.calibrate import collect_statistics, estimate_limit, estimate_range, weight_scales
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.placement import GateRegion, place_quantizers
from edgeattn.quant.plan import ActivationRange, QuantPlan

__all__ = ["make_plan"]


def make_plan(
    model: ModelProto,
    images: Sequence[NDArray[np.float32]],
    config: PtqConfig,
    gates: Sequence[GateRegion] = (),
    progress: Callable[[int, int], None] | None = None,
) -> QuantPlan:
    """Calibrate a canonical fp32 graph.

    Args:
        model: Canonical fp32 ONNX, one input, batch 1.
        images: Calibration batches (1, C, H, W), normalized as in inference.
        config: Estimator and corrections.
        gates: Attention modules and their policies.
        progress: Called with (done, total).
    """
    place = place_quantizers(model, gates)
    graph = Graph(model)
    statistics = collect_statistics(model, place.activations, images, progress)
    activations: dict[str, ActivationRange] = {}
    for name in place.activations:
        if name in place.fixed:
            low, high = place.fixed[name]
            limit = max(-low, high)
        else:
            low, high = estimate_range(statistics[name], config.range_estimator, config.percentile)
            limit = estimate_limit(statistics[name], config.range_estimator, config.percentile)
        activations[name] = ActivationRange(low=low, high=high, limit=limit, addend=name in place.addends)
    for name, source in place.same_range.items():
        activations[name] = activations[source].model_copy(update={"addend": False})
    weights = {
        name: weight_scales(graph.constants[name], axis, config.range_estimator).tolist()
        for name, axis in place.weights.items()
    }
    return QuantPlan(
        method="ptq",
        activations=activations,
        weights=weights,
        float_regions=[gate.prefix for gate in gates if gate.policy == "float"],
        provenance={"range_estimator": config.range_estimator, "calibration_images": str(len(images))},
    )
