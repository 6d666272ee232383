"""The QDQ graph that engines are made from: in the plan's order of channels, checked against the float graph's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeattn.errors import ParityError
from edgeattn.export.qdq import emit_qdq
from edgeattn.onnx_plain import open_plain
from edgeattn.quant.plan import Profile, QuantPlan

__all__ = ["reorder_channels"]

_IMAGES = 4
_SQNR_DB = 20.0


def reorder_channels(
    expected: ModelProto,
    model: ModelProto,
    plan: QuantPlan,
    profile: Profile,
    images: Sequence[NDArray[np.float32]],
) -> ModelProto:
    """Return a QDQ graph with its channels in the plan's order, checked against the one in the float graph's.

    Not checked to the last bit: here sums are float, and their order is another.

    Args:
        expected: From `emit_qdq`, which left channels in place.
        model: Canonical fp32 graph.
        plan: As for `expected`.
        profile: As for `expected`.
        images: Inputs (1, C, H, W).

    Raises:
        ParityError: If the graphs' outputs differ.
    """
    if not plan.channel_orders:
        return expected
    reordered = emit_qdq(model, plan, profile)
    signal = noise = 0.0
    runs = [open_plain(graph, "the check of an export") for graph in (expected, reordered)]
    for image in images[:_IMAGES]:
        wanted, got = (run.run(None, {run.get_inputs()[0].name: image})[0].astype(np.float64) for run in runs)
        signal += float(np.square(wanted).sum())
        noise += float(np.square(got - wanted).sum())
    # So that NaN fails as well.
    if not noise <= signal * 10 ** (-_SQNR_DB / 10):
        raise ParityError(
            f"Export check: with its channels in another order the QDQ graph gives other outputs, {noise / signal:.2%} "
            "of their power. The export is not used. Turn quant.ptq.channel_order off to go on. This is a defect of the "
            "exporter for this network; please report it."
        )
    return reordered
