"""The QDQ graph that engines are made from: in the plan's order of channels, checked against the float graph's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeattn.errors import ParityError
from edgeattn.export.qdq import emit_qdq
from edgeattn.onnx_graph import Graph
from edgeattn.onnx_plain import open_plain
from edgeattn.quant.channel_order import apply_channel_orders
from edgeattn.quant.plan import Profile, QuantPlan

__all__ = ["reorder_channels"]

Float64 = NDArray[np.float64]

_IMAGES = 4
_FLOAT_SHARE = 1e-4
"""Of the outputs' power: what another order of sums may change in float."""
_SHARE = 0.01
_OF_QUANTIZATION = 2.0
"""Roundings that fall the other way may change as much as quantization does, where that changes much."""


def reorder_channels(
    expected: ModelProto,
    model: ModelProto,
    plan: QuantPlan,
    profile: Profile,
    images: Sequence[NDArray[np.float32]],
) -> ModelProto:
    """Return a QDQ graph with its channels in the plan's order, checked against the one in the float graph's.

    The order is checked in float first, where only sums change their order. The QDQ graphs are not compared to the last
    bit: a sum in another order makes roundings fall the other way, and later ones with them.

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
    floats = Graph(model)
    apply_channel_orders(floats, plan.channel_orders)
    plain, moved, wanted, got = (
        _outputs(graph, images[:_IMAGES]) for graph in (model, floats.to_model(), expected, reordered)
    )
    _check("float", _share(plain, moved), _FLOAT_SHARE)
    _check("QDQ", _share(wanted, got), max(_SHARE, _OF_QUANTIZATION * _share(plain, wanted)))
    return reordered


def _outputs(graph: ModelProto, images: Sequence[NDArray[np.float32]]) -> Float64:
    session = open_plain(graph, "the check of an export")
    name = session.get_inputs()[0].name
    return np.stack([session.run(None, {name: image})[0].astype(np.float64) for image in images])


def _share(wanted: Float64, got: Float64) -> float:
    """Return the power of a difference as a share of what was wanted."""
    noise, signal = float(np.square(got - wanted).sum()), float(np.square(wanted).sum())
    return noise / signal if signal else noise


def _check(kind: str, share: float, bound: float) -> None:
    # So that NaN fails as well.
    if not share <= bound:
        raise ParityError(
            f"Export check: with its channels in another order the {kind} graph gives other outputs, {share:.2%} of their "
            f"power; accepted is {bound:.2%}. The export is not used. Turn quant.ptq.channel_order off to go on. This is a "
            "defect of the exporter for this network; please report it."
        )
