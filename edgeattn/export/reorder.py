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
_OF_QUANTIZATION = 4.0
"""Where quantization changes much, roundings that fall the other way may change as much again: errors that have nothing to
do with each other differ by twice their power, and by more on single images."""


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


def _outputs(graph: ModelProto, images: Sequence[NDArray[np.float32]]) -> list[Float64]:
    """Return each output for all images."""
    session = open_plain(graph, "the check of an export")
    name = session.get_inputs()[0].name
    rows = [session.run(None, {name: image}) for image in images]
    return [np.stack(values).astype(np.float64) for values in zip(*rows, strict=True)]


def _share(wanted: Sequence[Float64], got: Sequence[Float64]) -> float:
    """Return the power of a difference as a share of what was wanted, of the output where it is the largest."""
    shares = []
    for one, other in zip(wanted, got, strict=True):
        noise, signal = float(np.square(other - one).sum()), float(np.square(one).sum())
        shares.append(noise / signal if signal else noise)
    return float(np.max(shares))  # NaN stays


def _check(kind: str, share: float, bound: float) -> None:
    # So that NaN fails as well.
    if not share <= bound:
        raise ParityError(
            f"Export check: with its channels in another order the {kind} graph gives other outputs, {share:.2%} of their "
            f"power; accepted is {bound:.2%}. The export is not used. Turn quant.ptq.channel_order off to go on. This is a "
            "defect of the exporter for this network; please report it."
        )
