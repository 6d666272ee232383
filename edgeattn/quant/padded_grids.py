"""All 256 levels in profile s8 for tensors behind which convolutions pad, where that is worth a pad of integers.

Folding a zero point (`edgeattn.quant.folding`) is free where no reader pads. In a mobile network every expanded map is read
by a depthwise convolution that does, and has half of its levels in profile s8. Of those few matter: on ImageNet's
MobileNetV2 the first map has 29 % of all of the profile's noise, and no other more than 3 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edgeattn.onnx_graph import Graph
from edgeattn.quant.folding import can_fold_zero_point
from edgeattn.quant.placement import Placement
from edgeattn.quant.plan import QuantPlan
from edgeattn.quant.ranges import FINER
from edgeattn.quant.simulation import adjusted_graph, batches_of
from edgeattn.quant.torch_graph import TorchGraph, fake_quantize

__all__ = ["with_padded_grids"]

LEAST_SHARE = 0.08
"""Of the noise in profile s8: what a tensor has to take away for its pad."""
_SILENCE = 1e-30


@torch.no_grad()
def with_padded_grids(
    plan: QuantPlan, graph: Graph, place: Placement, images: Sequence[NDArray[np.float32]], noise: float
) -> QuantPlan:
    """Return the plan with more tensors that fold their zero points; itself where none is worth it.

    Args:
        plan: With ranges for all tensors.
        graph: Canonical fp32 graph.
        place: Which tensors share a range.
        images: Arrays (1, C, H, W) to measure on.
        noise: Power of the error of logits over their power, of the plan in profile s8.
    """
    tied = set(place.same_range) | set(place.same_range.values()) | set(place.fixed)
    candidates = [
        name
        for name, item in plan.activations.items()
        if not item.folds_zero_point
        and not item.addend
        and name not in tied
        and (item.high - item.low) / 255 < FINER * item.limit / 127
        and can_fold_zero_point(graph, name, behind_pads=True)
    ]
    if not candidates:
        return plan
    network = TorchGraph(
        adjusted_graph(graph, plan.model_copy(update={"bias_shift": {}, "roundings": {}}), "s8")
    )
    batches = batches_of(network, images)
    wanted = [network(batch) for batch in batches]
    power = max(sum(float(logits.square().sum()) for logits in wanted), _SILENCE)

    def error(name: str, *, folds: bool) -> float:
        params = plan.activations[name].model_copy(update={"folds_zero_point": folds}).params("s8")
        alone = {name: lambda value: fake_quantize(value, params)}
        found = (network(batch, alone) for batch in batches)
        return (
            sum(float((got - logits).square().sum()) for got, logits in zip(found, wanted, strict=True))
            / power
        )

    activations = dict(plan.activations)
    for name in candidates:
        if error(name, folds=False) - error(name, folds=True) > LEAST_SHARE * noise:
            activations[name] = activations[name].model_copy(update={"folds_zero_point": True})
    return plan if activations == plan.activations else plan.model_copy(update={"activations": activations})
