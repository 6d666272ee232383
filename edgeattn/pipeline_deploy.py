"""Build and measure one quantized network on its targets."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeattn.answers import Answers
from edgeattn.artifact import OnnxArtifact
from edgeattn.errors import CoverageError, EdgeAttnError
from edgeattn.measure import (
    AcceptBounds,
    LatencyComparison,
    Parity,
    compare_engines,
    compare_outputs,
    judge,
    run_session,
)
from edgeattn.onnx_plain import open_plain
from edgeattn.pipeline_coverage import check_coverage, judge_coverage
from edgeattn.progress import Progress
from edgeattn.recipe import Accept
from edgeattn.report import (
    EngineFile,
    LatencyPair,
    LatencyResult,
    LayerResult,
    LayerTimeResult,
    ReasonResult,
    TargetResult,
)
from edgeattn.targets import Engine, Target, TimingPlan, get_target, is_emulated, save_engine
from edgeattn.targets.apart import build_apart

__all__ = ["FAR_DB", "Measured", "Workload", "deploy", "judge_target", "module_of"]

logger = logging.getLogger(__name__)

_CHECKER = "ort-cpu"
_GRAPH_IMAGES = 32
FAR_DB = 30.0
"""An engine that is nearer to its graph gives its answers, whatever FP32 gives."""
_REASON_KEYS = {
    "top1_delta": "top1_delta_max",
    "agreement": "agreement_min",
    "sqnr_db": "sqnr_db_min",
    "speedup": "speedup_min",
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """What every target is measured with.

    Attributes:
        fp32: The float graph.
        qdq: The quantized graph by profile.
        images: (N, C, H, W) float32.
        labels: (N,) class indices, or None.
        reference_logits: Of the float network, (N, classes), or all its outputs, flattened.
        timing: How long engines are timed.
        layers: SQNR by tensor for the report, by profile.
        computed: What `graph_logits` has computed so far, by profile.
    """

    fp32: OnnxArtifact
    qdq: Mapping[str, OnnxArtifact]
    images: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    reference_logits: NDArray[np.float32]
    timing: TimingPlan
    layers: Mapping[str, Sequence[LayerResult]] = dataclasses.field(default_factory=dict)
    computed: dict[str, NDArray[np.float32]] = dataclasses.field(default_factory=dict, init=False)

    def graph_logits(self, profile: str, count: int) -> NDArray[np.float32]:
        """Compute a quantized graph operator by operator for the first `count` images, once for all targets.

        Not with a CPU's INT8 kernels: without VNNI they may saturate 16-bit sums, which is what a check would look for.
        """
        found = self.computed.get(profile)
        if found is None or len(found) < count:
            session = open_plain(
                self.qdq[profile].path, "the check of an engine", threads=self.timing.threads
            )
            given, names = self.fp32.inputs[0].name, list(self.answers.names)
            rows = (session.run(names, {given: image[None]}) for image in self.images[:count])
            found = np.stack([np.concatenate([value.ravel() for value in row]) for row in rows])
            self.computed[profile] = found
        return found[:count]

    @property
    def answers(self) -> Answers:
        """What the network answers."""
        return Answers.of(self.fp32.outputs)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A target's entry in the report, with what its verdict is drawn from."""

    result: TargetResult
    parity: Parity | None = None
    comparison: LatencyComparison | None = None


def deploy(
    name: str, work: Workload, folder: Path, progress: Progress, *, strict: float | None = None
) -> Measured:
    """Build INT8 and FP32 engines for a target, and measure them where they can run.

    A target that is missing or fails becomes an entry that says so: the others go on.

    Args:
        name: Of the target.
        work: What is built and measured.
        folder: Of the run.
        progress: Hears how far it is.
        strict: Fail the INT8 build where a smaller share of its layers with weights runs in INT8; None: do not.
    """
    target = get_target(name)
    available = target.probe()
    if not available.can_build:
        reason = available.reason + (f" Install it with: {available.install}" if available.install else "")
        return Measured(TargetResult(status="unavailable", reason=reason))
    try:
        return _deploy(target, work, folder, available.can_run, available.reason, progress, strict)
    except CoverageError as exc:
        return Measured(
            TargetResult(status="failed", error=str(exc), profile=_profile(target), build=exc.build)
        )
    except EdgeAttnError as exc:
        logger.debug("target %s failed", name, exc_info=True)
        return Measured(TargetResult(status="failed", error=str(exc), profile=_profile(target)))


def judge_target(name: str, measured: Measured, accept: Accept) -> list[ReasonResult]:
    """Judge one target by the bounds that concern it.

    Bounds on accuracy hold wherever accuracy was measured; the bound on speed where engines ran. The
    SQNR bound is about profile u8: half of the levels of s8 lie below zero, and mostly idle.
    """
    result = measured.result
    if result.status == "unavailable":
        return []
    if result.status == "failed":
        said = (result.error or "").partition("\n")[0]
        bound = "int8_coverage_min" if result.build else "targets"
        return [ReasonResult(bound=bound, target=name, passed=False, text=f"failed: {said}")]
    is_s8 = result.profile == "s8"
    agreement = accept.agreement_min
    if is_s8 and accept.s8_agreement_min is not None:
        agreement = accept.s8_agreement_min
    bounds = AcceptBounds(
        top1_delta_max=accept.top1_delta_max
        if measured.parity and measured.parity.top1 is not None
        else None,
        agreement_min=agreement,
        sqnr_db_min=None if is_s8 else accept.sqnr_db_min,
        speedup_min=accept.speedup_min if measured.comparison is not None else None,
    )
    ratio = None
    if measured.comparison is not None:
        ratio = measured.comparison.ratios["int8"]
    reasons = judge_coverage(name, result.build, accept.int8_coverage_min)
    for reason in judge(bounds, measured.parity, ratio).reasons:
        key = _REASON_KEYS[reason.metric]
        if key == "agreement_min" and is_s8 and accept.s8_agreement_min is not None:
            key = "s8_agreement_min"
        reasons.append(
            ReasonResult(
                bound=key,
                target=name,
                wanted=reason.bound,
                got=reason.measured,
                passed=reason.passed,
                certain=reason.certain,
                text=reason.text,
            )
        )
    return reasons


def module_of(layer: str) -> str | None:
    """Return the module path in a layer's name, such as ``features.2.conv.0`` in ``features/2/conv/0/...``."""
    path = layer.split("_token_")[0].removesuffix(".quantized").removesuffix(".dequantized")
    parts = path.split("/")
    return ".".join(parts[:-2]) if len(parts) > 2 else None


def _profile(target: Target) -> str | None:
    return target.profile if target.profile in ("s8", "u8") else None


def _deploy(
    target: Target,
    work: Workload,
    folder: Path,
    can_run: bool,
    why_not: str,
    progress: Progress,
    strict: float | None,
) -> Measured:
    name = target.name
    progress.update(name, 0, 4)
    workdir = folder / name
    int8 = _build(target, work.qdq[target.profile], workdir / "int8", strict)
    progress.update(name, 1, 4)
    result = TargetResult(
        status="ok" if can_run else "built",
        reason=None if can_run else why_not,
        profile=_profile(target),
        engine=EngineFile(
            path=str(int8.path.relative_to(folder)), sha256=int8.sha256, size_bytes=int8.size_bytes
        ),
        build=dict(int8.details),
        layers=list(work.layers.get(target.profile, ())),
    )
    feeds = {work.fp32.inputs[0].name: work.images[:1]}
    outputs = work.answers.names
    comparison: LatencyComparison | None = None
    if can_run and is_emulated(target):
        with target.open(int8, threads=work.timing.threads) as session:
            logits = run_session(session, work.images, work.fp32.inputs[0].name, outputs)
        result.reason = "emulated: it answers as the device would; its latency says nothing and is left out"
    elif can_run:
        fp32 = _build(target, work.fp32, workdir / "fp32")
        progress.update(name, 2, 4)
        with target.open(int8, threads=work.timing.threads) as session:
            logits = run_session(session, work.images, work.fp32.inputs[0].name, outputs)
            times = session.layer_times(feeds)
        progress.update(name, 3, 4)
        openers = {
            key: functools.partial(target.open, engine, threads=work.timing.threads)
            for key, engine in (("fp32", fp32), ("int8", int8))
        }
        comparison = compare_engines(openers, feeds, work.timing, baseline="fp32")
        result.latency = LatencyPair(
            int8=LatencyResult(**comparison.latencies["int8"].to_json()),
            fp32=LatencyResult(**comparison.latencies["fp32"].to_json()),
        )
        result.speedup = comparison.ratios["int8"].speedup
        result.speedup_interval = comparison.ratios["int8"].speedup_interval
        result.layer_times = [
            LayerTimeResult(**dataclasses.asdict(item), module=module_of(item.name)) for item in times
        ]
    else:
        checked = _run_elsewhere(work, target.profile)
        if checked is None:
            progress.update(name, 4, 4)
            return Measured(result)
        logits, result.checked_by = checked
    if result.checked_by is None:
        _compare_with_graph(name, result, work, target.profile, logits)
    progress.update(name, 4, 4)
    parity = compare_outputs(work.reference_logits, logits, work.labels, work.answers)
    result.outputs_sqnr_db = parity.to_json()["outputs_sqnr_db"]
    result.n = parity.n
    for field in ("top1", "top1_interval", "top1_delta", "top1_delta_interval", "agreement"):
        setattr(result, field, getattr(parity, field))
    for field in ("agreement_interval", "sqnr_db", "kl", "mcnemar_p"):
        setattr(result, field, getattr(parity, field))
    return Measured(result, parity, comparison)


def _build(target: Target, artifact: OnnxArtifact, workdir: Path, strict: float | None = None) -> Engine:
    (workdir / "lowered").mkdir(parents=True, exist_ok=True)
    # What was lowered lies apart: the engine's folder holds the engine and its manifest.
    lowered = target.lower(artifact, workdir / "lowered")
    make = build_apart if getattr(target, "builds_apart", False) else _build_here
    engine = make(target, lowered, workdir)
    if strict is not None:
        try:
            check_coverage(target.name, engine.details, strict)
        except CoverageError:
            # No engine is left that somebody might take for a good one.
            engine.path.unlink(missing_ok=True)
            raise
    save_engine(engine)
    return engine


def _build_here(target: Target, lowered: OnnxArtifact, workdir: Path) -> Engine:
    return target.build(lowered, workdir)


def _run_elsewhere(work: Workload, profile: str) -> tuple[NDArray[np.float32], str] | None:
    """Compute the same QDQ file operator by operator, for a target whose device is not here."""
    here = get_target(_CHECKER).probe()
    if not here.can_run:
        return None
    logits = work.graph_logits(profile, len(work.images))
    return logits, f"ONNX Runtime {here.version} on this CPU, operator by operator"


def _compare_with_graph(
    name: str, result: TargetResult, work: Workload, profile: str, logits: NDArray[np.float32]
) -> None:
    """Measure how far an engine is from the graph that it was made of, and say so where that is far.

    Runtimes round here and there the other way, which is as nothing beside what quantization costs. An engine that
    adds more than that may compute something else: it lost a clip, or its sums do not fit.
    """
    if not get_target(_CHECKER).probe().can_run:
        return
    count = min(_GRAPH_IMAGES, len(work.images))
    plain = work.graph_logits(profile, count)
    own = compare_outputs(plain, logits[:count], answers=work.answers).sqnr_db
    cost = compare_outputs(work.reference_logits[:count], plain, answers=work.answers).sqnr_db
    result.graph_sqnr_db = own if math.isfinite(own) else None
    if own < min(cost, FAR_DB):
        result.graph_warning = (
            f"the engine is {own:.1f} dB from its own quantized graph, which is {cost:.1f} dB from FP32 "
            f"({count} images): it may compute something else than it was given. "
            f"`edgeattn parity RUN --targets reference,{name}` names the layer."
        )
