"""The sensitivity of a network's layers and gates, for a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_deploy import module_of
from edgeattn.quant.placement import GateRegion, place_quantizers
from edgeattn.quant.plan import Profile, QuantPlan
from edgeattn.report import SensitivityResult

__all__ = ["sensitivity_results"]


def sensitivity_results(
    model: ModelProto,
    plan: QuantPlan,
    profile: Profile,
    images: Sequence[NDArray[np.float32]],
    gates: Sequence[GateRegion],
    progress: Callable[[int, int], None],
) -> list[SensitivityResult]:
    """Return what each layer and gate costs the logits, in graph order.

    Args:
        model: Canonical fp32 graph.
        plan: Complete plan of it.
        profile: Which spelling.
        images: Each (1, C, H, W); none: nothing is measured.
        gates: Attention modules.
        progress: Called with (done, total).
    """
    if not images:
        return []
    from edgeattn.quant.sensitivity import measure_sensitivity

    found = measure_sensitivity(
        Graph(model), plan, profile, place_quantizers(model, gates), images, gates, progress
    )
    return [
        SensitivityResult(
            name=item.name,
            module=item.name.replace("/", ".") if item.is_gate else module_of(item.name),
            is_gate=item.is_gate,
            alone_sqnr_db=item.alone_sqnr_db,
            gain_db=item.gain_db,
        )
        for item in found
    ]
