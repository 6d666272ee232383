"""Post-training quantization: from a float graph and calibration images to a `QuantPlan`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from onnx import ModelProto

from edgeattn.errors import DataError
from edgeattn.onnx_graph import Graph
from edgeattn.quant.calibrate import estimate_limit, estimate_range
from edgeattn.quant.channel_equalization import equalized_plan
from edgeattn.quant.channel_gates import channel_gates
from edgeattn.quant.channel_order import order_channels
from edgeattn.quant.config import PtqConfig, RangeEstimator
from edgeattn.quant.equalize import apply_channel_scales
from edgeattn.quant.exact_grids import (
    count_exact,
    exact_grids,
    power_of_two_activations,
    short_scales,
    whole_biases,
)
from edgeattn.quant.extents import with_extents
from edgeattn.quant.headroom import Headroom, leave_headroom
from edgeattn.quant.image_choice import Images, split_images, spread_images
from edgeattn.quant.importance import weighted_statistics
from edgeattn.quant.joined_progress import JoinedProgress, Progress
from edgeattn.quant.learned_rounding import learn_rounding
from edgeattn.quant.nncf_ptq import quantize_with_nncf
from edgeattn.quant.padded_grids import with_padded_grids
from edgeattn.quant.placement import GateRegion, Placement, place_quantizers
from edgeattn.quant.plan import PROFILES, LadderStep, Profile, QuantPlan
from edgeattn.quant.pool_grids import coarsen_pools
from edgeattn.quant.ranges import (
    planned_activations,
    planned_weights,
    range_statistics,
    with_ranges,
)
from edgeattn.quant.simulation import PlanMeter
from edgeattn.quant.swish_grids import count_swish_grids, with_swish_grids
from edgeattn.quant.tuning import tune_plan

__all__ = ["GateRegion", "fit_to_kernels", "make_plan"]

WEIGHED_IMAGES = 64
HEADROOM_IMAGES = 64
EXACT_IMAGES = 16
PADDED_IMAGES = 16
ROUNDING_IMAGES = 64
RANGES_SHARE, TUNING_SHARE, ROUNDING_SHARE = 0.1, 0.7, 0.1
TUNINGS, TUNINGS_EXACT = 2, 4


def make_plan(
    model: ModelProto,
    images: Images,
    config: PtqConfig,
    gates: Sequence[GateRegion] = (),
    progress: Progress | None = None,
    fixed: frozenset[str] = frozenset(),
    plain: ModelProto | None = None,
) -> QuantPlan:
    """Calibrate a canonical fp32 graph, step by step from the cheapest on.

    A step stays only where it brings both profiles' logits nearer to the float graph's, summed in dB, on
    calibration images. Steps end early once the bounds in `config` are met. Headroom, exact grids and those of hard
    swishes always stay: what they are for happens in kernels, which the measurement here does not imitate.

    Args:
        model: Canonical fp32 ONNX, one input, batch 1.
        images: Calibration batches (1, C, H, W), normalized as in inference.
        config: Estimator, steps and bounds.
        gates: Attention modules and their policies.
        progress: Called with (done, total).
        fixed: Weights and biases that nothing may change, because the module behind the graph computes them.
        plain: The graph before it was made to read pixels (`edgeattn.quant.pixel_input`), if it was, so that the ladder
            tells what that gains.

    Raises:
        DataError: If there is no image, or the network becomes NaN or infinite on one.
    """
    if not images:
        raise DataError("There is no calibration image; give at least 16, better 200.")
    place = place_quantizers(model, gates)
    graph = Graph(model)
    counter = JoinedProgress(progress)
    held_out, learned_from = split_images(images)
    start = time.perf_counter()
    empty = QuantPlan(
        method="ptq",
        activations={},
        weights={},
        float_regions=[gate.prefix for gate in gates if gate.policy == "float"],
        provenance={"range_estimator": config.range_estimator, "calibration_images": str(len(images))},
    )
    estimator, *others = config.estimators
    statistics = range_statistics(graph, place, images, config.estimators, counter.part(RANGES_SHARE))
    plan = with_ranges(empty, graph, place, statistics, estimator, config)
    seconds = time.perf_counter() - start
    meter = PlanMeter(graph, place, held_out)
    name, ladder = f"ranges: {estimator}", list[LadderStep]()
    if plain:
        ladder.append(_plain_step(name, plain, empty, images, held_out, estimator, config, gates))
        name = "the image in pixels"
    ladder.append(meter.step(name, plan, seconds))
    for other in others:
        if _is_enough(_last_kept(ladder), config):
            break
        start = time.perf_counter()
        changed = with_ranges(empty, graph, place, statistics, other, config)
        plan = _climb(ladder, meter, f"ranges: {other}", plan, changed, start)
        estimator = other if plan is changed else estimator
    if config.nncf and not _is_enough(_last_kept(ladder), config):
        start = time.perf_counter()
        changed = _with_nncf(plan, model, place, images, config, fixed)
        plan = _climb(ladder, meter, "NNCF", plan, changed, start)
    if config.equalization and not _is_enough(_last_kept(ladder), config):
        start = time.perf_counter()
        part = counter.part(RANGES_SHARE)
        equalized = equalized_plan(empty, graph, place, images, estimator, config, fixed, part)
        if equalized is not None:
            swishes = len(channel_gates(graph))
            name = "channel equalization" + (f" through swishes: {swishes}" if swishes else "")
            plan = _climb(ladder, meter, name, plan, equalized, start)
    if config.importance and not _is_enough(_last_kept(ladder), config):
        start = time.perf_counter()
        chosen = spread_images(learned_from, WEIGHED_IMAGES)
        changed = _with_weighted_ranges(plan, graph, place, chosen, counter.part(RANGES_SHARE))
        plan = _climb(ladder, meter, "importance-weighted ranges", plan, changed, start)
    if config.swish_grids:
        start = time.perf_counter()
        changed = with_swish_grids(plan, graph, place)
        if changed is not plan:
            plan = changed
            name = f"grids of hard swishes: {count_swish_grids(plan, graph, place)} tensors"
            ladder.append(meter.step(name, plan, time.perf_counter() - start))
    if config.padded_grids and not _is_enough(_last_kept(ladder), config):
        start = time.perf_counter()
        noise = 10 ** (-_last_kept(ladder).sqnr_db_s8 / 10)
        changed = with_padded_grids(plan, graph, place, spread_images(learned_from, PADDED_IMAGES), noise)
        if changed is not plan:
            plan = _climb(ladder, meter, "256 levels behind pads: s8", plan, changed, start)
    if _makes_room(config):
        plan = order_channels(plan, graph, place)
    # Scales for which biases were found, if they were.
    settled = plan.weights if plan.bias_shift else None
    if not config.exact:
        plan = _with_headroom(ladder, meter, plan, graph, place, images, config)

    tunings = TUNINGS_EXACT if config.exact else TUNINGS

    def tuned(profile: Profile, *, ranges: bool) -> QuantPlan:
        if not config.tuning_steps or _is_enough(_last_kept(ladder), config):
            return plan
        start, part = time.perf_counter(), counter.part(TUNING_SHARE / tunings)
        changed = tune_plan(
            graph, plan, profile, place, learned_from, config.tuning_steps, part, fixed, ranges=ranges
        )
        what = "biases and ranges" if ranges else "biases"
        return _climb(ladder, meter, f"tuning of {what}: {profile}", plan, changed, start)

    def rounded(settled: Mapping[str, Sequence[float]] | None) -> QuantPlan:
        if not config.rounding or _is_enough(_last_kept(ladder), config):
            return plan
        start, part = time.perf_counter(), counter.part(ROUNDING_SHARE)
        found = learn_rounding(
            plan,
            graph,
            place,
            spread_images(learned_from, ROUNDING_IMAGES),
            part,
            fixed,
            settled=settled,
            headroom="proven" if config.exact else config.headroom,
        )
        name = f"learned rounding: {found.changed} of {found.weights} weights the other way"
        return _climb(ladder, meter, name, plan, found.plan, start)

    before = plan
    plan = tuned("u8", ranges=True)
    # After u8, because profile s8 takes some of its grids over.
    plan = tuned("s8", ranges=True)
    if plan is not before:
        settled = plan.weights
        # Tuning moved the ranges a little.
        plan = with_swish_grids(plan, graph, place) if config.swish_grids else plan
    if config.exact:
        start = time.perf_counter()
        snapped = power_of_two_activations(plan, graph, place, fixed)
        settled = snapped.weights if settled else None
        plan = short_scales(snapped, graph, place, spread_images(images, EXACT_IMAGES))
        name = "exact grids: {} of {} tensors".format(*count_exact(plan))
        ladder.append(meter.step(name, plan, time.perf_counter() - start))
        plan = rounded(settled)
        # Other weights, other mean errors.
        plan = tuned("u8", ranges=False)
        plan = tuned("s8", ranges=False)
        start = time.perf_counter()
        plan = whole_biases(plan, graph, place, fixed)
        ladder.append(meter.step("biases of whole steps", plan, time.perf_counter() - start))
    else:
        if plan is not before:
            # Other ranges, other integers.
            plan = _with_headroom(ladder, meter, plan, graph, place, images, config)
        plan = rounded(settled)
    counter.finish()
    plan = coarsen_pools(plan, graph, place)
    return with_extents(plan.model_copy(update={"ladder": ladder}), graph, images)


def _plain_step(
    name: str,
    plain: ModelProto,
    empty: QuantPlan,
    images: Images,
    held_out: Images,
    estimator: RangeEstimator,
    config: PtqConfig,
    gates: Sequence[GateRegion],
) -> LadderStep:
    """Measure what ranges alone reach where the image has one grid for all channels."""
    start = time.perf_counter()
    graph, place = Graph(plain), place_quantizers(plain, gates)
    statistics = range_statistics(graph, place, images, (estimator,), None)
    plan = with_ranges(empty, graph, place, statistics, estimator, config)
    return PlanMeter(graph, place, held_out).step(name, plan, time.perf_counter() - start)


def fit_to_kernels(
    plan: QuantPlan,
    graph: Graph,
    place: Placement,
    images: Images,
    config: PtqConfig,
    fixed: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> QuantPlan:
    """Return a trained plan on grids that kernels take, with headroom or exact ones, as `make_plan` leaves one.

    Args:
        plan: Complete plan.
        graph: Canonical fp32 graph that it belongs to.
        place: Which ranges are fixed or another tensor's; the axes of the weights.
        images: Calibration batches (1, C, H, W).
        config: What is wanted, and from how many batches biases are tuned to new grids.
        fixed: Weights and biases that nothing may change.
        progress: Called with (done, total); tuning to exact grids takes minutes.
    """
    plan = coarsen_pools(plan, graph, place)
    if config.swish_grids:
        plan = with_swish_grids(plan, graph, place)
    if _makes_room(config):
        plan = order_channels(plan, graph, place)
    if config.exact:
        plan = exact_grids(plan, graph, place, spread_images(images, EXACT_IMAGES), fixed)
        counter = JoinedProgress(progress)
        for profile in reversed(PROFILES) if config.tuning_steps else ():
            part, steps = counter.part(1 / len(PROFILES)), config.tuning_steps
            plan = tune_plan(graph, plan, profile, place, images, steps, part, fixed, ranges=False)
        return whole_biases(plan, graph, place, fixed)
    return plan if config.headroom == "none" else _headroom(plan, graph, place, images, config).plan


def _makes_room(config: PtqConfig) -> bool:
    """Whether scales make room in 16-bit sums, so that it matters which channels are neighbours."""
    return config.channel_order and (config.exact or config.headroom != "none")


def _headroom(plan: QuantPlan, graph: Graph, place: Placement, images: Images, config: PtqConfig) -> Headroom:
    chosen = spread_images(images, HEADROOM_IMAGES)
    return leave_headroom(plan, graph, place, chosen, proven=config.headroom == "proven")


def _climb(
    ladder: list[LadderStep], meter: PlanMeter, name: str, before: QuantPlan, after: QuantPlan, start: float
) -> QuantPlan:
    """Measure a step, note it, and return the plan to go on with."""
    last = _last_kept(ladder)
    seconds = time.perf_counter() - start
    step = meter.step(name, after, seconds)
    kept = step.sqnr_db_u8 + step.sqnr_db_s8 > last.sqnr_db_u8 + last.sqnr_db_s8
    ladder.append(step.model_copy(update={"kept": kept}))
    return after if kept else before


def _with_headroom(
    ladder: list[LadderStep],
    meter: PlanMeter,
    plan: QuantPlan,
    graph: Graph,
    place: Placement,
    images: Images,
    config: PtqConfig,
) -> QuantPlan:
    """Return the plan with room in 16-bit sums, and note what that costs."""
    if config.headroom == "none":
        return plan
    start = time.perf_counter()
    found = _headroom(plan, graph, place, images, config)
    seconds = time.perf_counter() - start
    if found.widened:
        name = f"headroom: {found.widened} of {found.channels} channels, {found.bits:.2f} bits each"
        ladder.append(meter.step(name, found.plan, seconds))
    return found.plan


def _last_kept(ladder: Sequence[LadderStep]) -> LadderStep:
    return next(step for step in reversed(ladder) if step.kept)


def _is_enough(step: LadderStep, config: PtqConfig) -> bool:
    if config.stop_at_sqnr_db is None and config.stop_at_agreement is None:
        return False
    sqnr, agreement = config.stop_at_sqnr_db, config.stop_at_agreement
    shares = [share for share in (step.agreement_u8, step.agreement_s8) if share is not None]
    return (sqnr is None or min(step.sqnr_db_u8, step.sqnr_db_s8) >= sqnr) and (
        agreement is None or min(shares, default=0.0) >= agreement
    )


def _with_nncf(
    plan: QuantPlan,
    model: ModelProto,
    place: Placement,
    images: Images,
    config: PtqConfig,
    fixed: frozenset[str],
) -> QuantPlan:
    """Return the plan with what NNCF decides; tensors that it leaves in float keep their ranges."""
    decisions = quantize_with_nncf(model, images, bias_correction=config.bias_correction, fixed=fixed)
    adjusted = Graph(model)
    apply_channel_scales(adjusted, decisions.channel_scales)
    shift = {name: value for name, value in decisions.bias_shift.items() if name not in fixed}
    found = {name: (item.low, item.high, item.limit) for name, item in plan.activations.items()}
    for name, (low, high) in decisions.ranges.items():
        if name in found and high > low:
            # NNCF's grid of a tensor that is never negative may begin below zero all the same.
            low = low if found[name][0] < 0 else 0.0
            found[name] = low, high, max(-low, high)
    activations = planned_activations(adjusted, place, found)
    return plan.model_copy(
        update={
            "activations": activations,
            "weights": planned_weights(adjusted, place, activations),
            "channel_scales": decisions.channel_scales,
            "bias_shift": dict.fromkeys(PROFILES, shift) if shift else {},
        }
    )


def _with_weighted_ranges(
    plan: QuantPlan, graph: Graph, place: Placement, images: Images, progress: Progress
) -> QuantPlan:
    """Return the plan with ranges of least weighted error, where the answer depends on a tensor."""
    adjusted = Graph(graph.to_model())
    apply_channel_scales(adjusted, plan.channel_scales)
    searched = [name for name in place.activations if name not in place.fixed]
    statistics = weighted_statistics(adjusted, searched, images, progress)
    found = {name: (item.low, item.high, item.limit) for name, item in plan.activations.items()}
    for name, stats in statistics.items():
        found[name] = *estimate_range(stats, "mse"), estimate_limit(stats, "mse")
    return plan.model_copy(update={"activations": planned_activations(adjusted, place, found)})
