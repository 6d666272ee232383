"""Scales with which CPU runtimes compute the same integers.

Runtimes requantize in float32: an int32 sum times a ratio of scales, a bias, a rounding. Each does it in its own order,
so results that lie near the middle between two steps round either way, and one such value changes the rounding of
everything behind it: within eight layers of MobileNetV2 most integers differ by a step or more. Where no operation on
the way has anything to round, the order does not matter. That takes

* activation scales that are powers of two: ratios and sums of such are exact. Between convolutions that costs
  nothing, because the layers around a tensor can scale its values (`edgeattn.quant.equalize`); tensors that residual
  adds join have one common factor, and lose a fraction of a bit;
* even zero points: a tie goes to the even integer before or after the zero point is added, whichever is first;
* weight scales with few mantissa bits, so that the product with the sum fits float32's 24;
* sums of residual branches that every runtime rounds alike: ONNX Runtime's integer kernel for ARM takes halves away
  from zero, so `edgeattn.lower.float_sums` has them added in float there;
* biases of whole accumulator steps;
* weights that cannot saturate 16-bit sums of pairs (`edgeattn.quant.pairs`).

All of it in both profiles, whose weights are the same: what profile s8 folds into its biases is part of them, and the
residual branch that it leaves in float is part of a sum.

That holds for networks of convolutions, ReLU6, residual sums and pools. Maps that a gate multiplies keep their grids:
float operations (sigmoids, products) still differ between runtimes in their last bits, and a sum twice as
large as any in calibration may be rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto

from edgeattn.onnx_graph import Graph
from edgeattn.quant.apply import apply_plan_constants
from edgeattn.quant.channel_order import input_orders
from edgeattn.quant.equalize import ChannelGroup, apply_channel_scales, find_groups
from edgeattn.quant.float32 import FLOAT32_BITS, mantissa_bits
from edgeattn.quant.folding import folding_shifts
from edgeattn.quant.pairs import LARGEST_SAFE_PAIR, pair_safe_scales, worst_pairs
from edgeattn.quant.placement import Placement
from edgeattn.quant.plan import (
    PROFILES,
    ActivationRange,
    Profile,
    QuantPlan,
    follow_ranges,
    quantize_weight,
)
from edgeattn.quant.simulation import batches_of, simulated
from edgeattn.quant.torch_graph import quantizers_of

__all__ = ["count_exact", "exact_grids", "power_of_two_activations", "short_scales", "whole_biases"]

"""Of float32, the implicit one included."""
_MOST_BITS = 8
_ACCUMULATOR_MARGIN = 2.0
"""Of images that were not looked at."""
_ALMOST = 1e-6
_LARGEST_CUT = 0.1
"""Of a range in profile s8, in powers of two: what is cut instead of losing half of the levels. Its ranges are 127
steps where those of u8 are 255, so one that fits u8 exactly is 0.006 short."""


def exact_grids(
    plan: QuantPlan,
    graph: Graph,
    place: Placement,
    images: Sequence[NDArray[np.float32]],
    fixed: frozenset[str] = frozenset(),
) -> QuantPlan:
    """Return the plan on grids that need no rounding on the way to one.

    Args:
        plan: Complete plan.
        graph: Canonical fp32 graph.
        place: Which ranges are fixed or another tensor's; the axes of the weights.
        images: Arrays (1, C, H, W): tell how large sums become.
        fixed: Constants that nothing may change, because the module behind the graph computes them. What they read
            and write keeps its grids.
    """
    return short_scales(power_of_two_activations(plan, graph, place, fixed), graph, place, images)


def power_of_two_activations(
    plan: QuantPlan, graph: Graph, place: Placement, fixed: frozenset[str] = frozenset()
) -> QuantPlan:
    """Return the plan with activation scales that are powers of two, at no change of the weights' integers.

    Args:
        plan: Complete plan. Its roundings are dropped: other scales have others.
        graph: Canonical fp32 graph.
        place: Which ranges are fixed or another tensor's.
        fixed: Constants that nothing may change, because the module behind the graph computes them.
    """
    activations = dict(plan.activations)
    channel_scales = {name: np.asarray(values) for name, values in plan.channel_scales.items()}
    weights = {name: np.asarray(values) for name, values in plan.weights.items()}
    shifts: dict[Profile, dict[str, NDArray[np.float64]]] = {
        profile: {name: np.asarray(values) for name, values in items.items()}
        for profile, items in plan.bias_shift.items()
    }
    followers = set(place.same_range) | set(place.fixed)
    # Inputs are quantized by themselves. What no group holds lies at gates, whose float operations round anyway, and a
    # range that grows there would leave its clip to be computed in float.
    exact = set(graph.input_names)
    for group in find_groups(graph):
        own = [name for name in group.tensors if name in activations and name not in followers]
        if not own or group.constants & fixed:
            continue
        factor = _common_factor([activations[name].params("u8").scale for name in own])
        channels = len(graph.constants[group.writers[0][0]])
        channel_scales[group.name] = channel_scales.get(group.name, np.ones(channels)) * factor
        _divide_layers(group, factor, weights, shifts)
        exact.update(own)
        for name in own:
            activations[name] = activations[name].times(1 / factor)
    for name, item in activations.items():
        if name in exact and name not in followers:
            activations[name] = _power_of_two(item)
    return plan.model_copy(
        update={
            "roundings": {},
            "activations": follow_ranges(activations, place.same_range),
            "weights": {name: values.tolist() for name, values in weights.items()},
            "channel_scales": {name: values.tolist() for name, values in channel_scales.items()},
            "bias_shift": {
                profile: {name: values.tolist() for name, values in items.items()}
                for profile, items in shifts.items()
            },
        }
    )


def short_scales(
    plan: QuantPlan, graph: Graph, place: Placement, images: Sequence[NDArray[np.float32]]
) -> QuantPlan:
    """Return the plan with weight scales of few mantissa bits, with which no pair of products saturates.

    Args:
        plan: From `power_of_two_activations`.
        graph: Canonical fp32 graph.
        place: The axes of the weights.
        images: Arrays (1, C, H, W): tell how large sums become.
    """
    largest = [_largest_sums(plan, graph, place, images, profile) for profile in PROFILES]
    orders = input_orders(graph, plan.channel_orders)
    adjusted = Graph(graph.to_model())
    apply_plan_constants(adjusted, plan, "u8")
    weights = {}
    for name, scales in plan.weights.items():
        sums = np.max([np.ones(len(scales)), *(found[name] for found in largest if name in found)], axis=0)
        # By channel: one whose weights are next to nothing has few steps for its bias, and many in its sum.
        bits = FLOAT32_BITS - np.ceil(np.log2(sums * _ACCUMULATOR_MARGIN))
        rows = np.moveaxis(adjusted.constants[name], place.weights[name], 0)
        if name in orders:
            rows = rows[:, orders[name]]
        weights[name] = _short_scales(rows, np.asarray(scales), np.clip(bits, 1, _MOST_BITS)).tolist()
    return plan.model_copy(update={"weights": weights, "provenance": {**plan.provenance, "grids": "exact"}})


def count_exact(plan: QuantPlan) -> tuple[int, int]:
    """Return how many activations have a power of two as step in every profile that quantizes them, of how many."""
    steps = [
        [item.params(profile).scale for profile in PROFILES if item.is_quantized(profile)]
        for item in plan.activations.values()
    ]
    return sum(all(map(_is_power_of_two, scales)) for scales in steps), len(steps)


def whole_biases(
    plan: QuantPlan, graph: Graph, place: Placement, fixed: frozenset[str] = frozenset()
) -> QuantPlan:
    """Return the plan with biases of whole accumulator steps, few enough of them to be exact in float32.

    In profile s8 that holds for the biases with the zero points that were folded into them. Layers that read a tensor
    without an exact grid keep their biases.

    Args:
        plan: From `exact_grids`, perhaps with other biases since.
        graph: Canonical fp32 graph.
        place: As for the plan.
        fixed: Constants that nothing may change, because the module behind the graph computes them.
    """
    shifts = {profile: _whole_shifts(plan, graph, profile, fixed) for profile in PROFILES}
    return plan.model_copy(update={"bias_shift": shifts})


def _whole_shifts(
    plan: QuantPlan, graph: Graph, profile: Profile, fixed: frozenset[str]
) -> dict[str, list[float]]:
    """Return the shifts of a profile's biases that make them whole."""
    shifts = dict(plan.bias_shift.get(profile, {}))
    folded = _folded(plan, graph, profile)
    plain = Graph(graph.to_model())
    apply_channel_scales(plain, plan.channel_scales)
    for node in graph.nodes:
        step = _accumulator_step(node, graph, plan, profile)
        if step is None or len(node.input) < 3 or node.input[2] not in plain.constants:
            continue
        name = node.input[2]
        if name in fixed or not _is_power_of_two(plan.activations[node.input[0]].params(profile).scale):
            continue
        origin = plain.constants[name].astype(np.float64)
        if origin.shape != step.shape or len(graph.consumers[name]) != 1:
            continue
        moved = folded.get(name, np.zeros(len(origin)))
        bias = origin + np.asarray(shifts.get(name, 0.0)) + moved
        room = np.exp2(np.maximum(FLOAT32_BITS - mantissa_bits(step), 1))
        coarse = np.exp2(np.ceil(np.maximum(np.log2(np.maximum(np.abs(bias / step), 1.0) / room), 0.0)))
        whole = np.rint(bias / (step * coarse)) * step * coarse
        shifts[name] = (whole - moved - origin).tolist()
    return shifts


def _folded(plan: QuantPlan, graph: Graph, profile: Profile) -> dict[str, NDArray[np.float64]]:
    """Return what a profile adds to biases for the zero points that it spells as 0."""
    if profile == "u8":
        return {}
    adjusted = Graph(graph.to_model())
    apply_plan_constants(adjusted, plan, profile)
    return folding_shifts(adjusted, plan)


def _divide_layers(
    group: ChannelGroup,
    factor: float,
    weights: dict[str, NDArray[np.float64]],
    shifts: Mapping[Profile, dict[str, NDArray[np.float64]]],
) -> None:
    """Divide what writes the group's tensors, and multiply what reads them: the integers stay."""
    for weight, bias in group.writers:
        if weight in weights:
            weights[weight] = weights[weight] / factor
        for items in shifts.values():
            if bias in items:
                items[bias] = items[bias] / factor
    for weight, _ in group.readers:
        if weight in weights:
            weights[weight] = weights[weight] * factor


def _common_factor(scales: Sequence[float]) -> float:
    """Return the factor in [1, 2) after whose division the scales lose least on the way up to powers of two."""

    def lost(factor: float) -> float:
        logs = [math.log2(scale / factor) for scale in scales]
        return sum(math.ceil(log - _ALMOST) - log for log in logs)

    return min((scale / 2.0 ** math.floor(math.log2(scale)) for scale in scales), key=lost)


def _is_power_of_two(scale: float) -> bool:
    return math.frexp(scale)[0] == 0.5


def _power_of_two(item: ActivationRange) -> ActivationRange:
    """Return a range whose steps are powers of two in both profiles, and whose zero point is even."""
    params = item.params("u8")
    step = 2.0 ** math.ceil(math.log2(params.scale) - _ALMOST)
    zero_point = 2 * round(params.zero_point / 2)
    limit = 127 * 2.0 ** math.ceil(math.log2(item.limit / 127) - _LARGEST_CUT)
    return item.model_copy(
        update={"low": -zero_point * step, "high": (255 - zero_point) * step, "limit": limit}
    )


def _short_scales(
    rows: NDArray[np.float32], scales: NDArray[np.float64], bits: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return scales of at most `bits` mantissa bits each with which no pair of products saturates."""
    is_depthwise = rows.ndim == 4 and rows.shape[1] == 1
    result = _rounded_up(scales if is_depthwise else pair_safe_scales(rows, scales, 0), bits)
    while not is_depthwise:
        # Another rounding of the weights may leave a pair one above.
        unsafe = worst_pairs(quantize_weight(rows, result)) > LARGEST_SAFE_PAIR
        if not unsafe.any():
            break
        result[unsafe] = _rounded_up(result[unsafe] * (1 + 2.0**-_MOST_BITS), bits[unsafe])
    return result


def _rounded_up(values: NDArray[np.float64], bits: NDArray[np.float64]) -> NDArray[np.float64]:
    exponent = np.exp2(np.floor(np.log2(values)))
    steps = np.exp2(bits - 1)
    result: NDArray[np.float64] = np.ceil(values / exponent * steps - _ALMOST) / steps * exponent
    return result


def _accumulator_step(
    node: NodeProto, graph: Graph, plan: QuantPlan, profile: Profile
) -> NDArray[np.float64] | None:
    """Return the real value of a step of a layer's sums, by output channel; None for float layers."""
    if node.op_type not in ("Conv", "Gemm") or node.input[1] not in plan.weights:
        return None
    source = node.input[0]
    if source not in plan.activations or not plan.activations[source].is_quantized(profile):
        return None
    scale = plan.activations[source].params(profile).scale
    return scale * np.asarray(plan.weights[node.input[1]], np.float32).astype(np.float64)


@torch.no_grad()
def _largest_sums(
    plan: QuantPlan,
    graph: Graph,
    place: Placement,
    images: Sequence[NDArray[np.float32]],
    profile: Profile,
) -> dict[str, NDArray[np.float64]]:
    """Return, by weight, the largest sum of every output channel on the images in accumulator steps, bias included.

    Where a profile leaves the convolution's branch of a residual sum in float, the other branch counts, too.
    """
    network = simulated(graph, plan, profile, place.weights)
    quantizers = quantizers_of(plan, profile)
    folded = _folded(plan, graph, profile)
    addends: dict[str, tuple[str, NDArray[np.float64], NDArray[np.float64]]] = {}
    largest: dict[str, NDArray[np.float64]] = {}
    for batch in batches_of(network, images):
        values = {network.input_name: batch}
        for index, node in enumerate(network.graph.nodes):
            for name in node.input if node.op_type == "Add" else ():
                if name in addends:
                    weight, sums, unit = addends[name]
                    other = next((item for item in node.input if item != name), name)
                    together = (sums + _channel_extent(values[other])) / unit
                    largest[weight] = np.maximum(largest[weight], together)
            step = _accumulator_step(node, network.graph, plan, profile)
            if step is None:
                network.run(values, [index], quantizers)
                continue
            # Without its own quantizer, to see the sum before it is rounded and cut.
            output = node.output[0]
            network.run(values, [index], {key: item for key, item in quantizers.items() if key != output})
            sums = _channel_extent(values[output])
            if len(node.input) > 2:
                bias = network.constants[node.input[2]].abs().double().numpy()
                # The values hold their zero points here; a kernel's sum gets those only with its bias.
                sums = sums + 2 * bias + np.abs(folded.get(node.input[2], 0.0))
            largest[node.input[1]] = np.maximum(largest.get(node.input[1], 0.0), sums / step)
            if output in plan.activations and not plan.activations[output].is_quantized(profile):
                addends[output] = node.input[1], sums, step
            if output in quantizers:
                values[output] = quantizers[output](values[output])
    return largest


def _channel_extent(values: torch.Tensor) -> NDArray[np.float64]:
    extent: NDArray[np.float64] = values.abs().transpose(0, 1).flatten(1).amax(1).double().numpy()
    return extent
