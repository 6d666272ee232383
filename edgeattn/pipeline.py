"""From a recipe to a report: the stages, in order, each resumable.

Importing this module needs neither torch nor a runtime.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from edgeattn.errors import RecipeError
from edgeattn.extras import require
from edgeattn.lower.preferences import preferred_forms
from edgeattn.pipeline_bench import bench_engines
from edgeattn.pipeline_coverage import STRICT_COVERAGE
from edgeattn.pipeline_deploy import Workload, deploy, judge_target
from edgeattn.pipeline_parity import parity_model
from edgeattn.pipeline_quantize import quantize_onnx
from edgeattn.pipeline_workspace import Workspace
from edgeattn.progress import Progress, SilentProgress
from edgeattn.recipe import Recipe
from edgeattn.report import EpochResult, Fp32Result, ReasonResult, Report, TargetResult, write_report
from edgeattn.report_inputs import input_sheet
from edgeattn.targets import TimingPlan, get_target, is_emulated

if TYPE_CHECKING:
    from edgeattn.pipeline_train import Prepared

__all__ = ["Step", "bench_engines", "parity_model", "plan_steps", "quantize_onnx", "run_recipe"]


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        name: Short name.
        what: What it does with this recipe.
        why_skipped: Why it is left out; empty if it is not.
    """

    name: str
    what: str
    why_skipped: str = ""


def plan_steps(recipe: Recipe) -> tuple[Step, ...]:
    """Return the steps that a run of `recipe` takes, without running or importing anything."""
    model, attention, quant = recipe.model, recipe.attention, recipe.quant
    network = f"{model.arch} x{model.width:g}" if model.arch == "mobilenet_v2" else model.arch
    if attention.kind != "none":
        network += f" with {attention.kind}"
    size = recipe.data.preprocess.size
    steps = [
        Step("data", f"load {recipe.data.kind}, hold out {recipe.data.validation_share:.0%}"),
        Step(
            "train",
            f"train {network} for {recipe.train.epochs} epochs" if recipe.train else network,
            "" if recipe.train else "the recipe takes the weights as they are",
        ),
        *_tune_steps(recipe),
        Step("export", f"{_edge_form(recipe)} for {size}x{size}, fp32 ONNX"),
        Step("ptq", f"calibrate on {recipe.calibration.name}: {quant.ptq.range_estimator} ranges"),
        Step(
            "qat",
            f"train quantized for {quant.qat.epochs} epochs",
            "" if quant.mode == "qat" else "quant.mode is ptq",
        ),
        Step("emit", f"QDQ ONNX in profile {' and '.join(_profiles(recipe))}, checked against torch"),
    ]
    for name in recipe.targets:
        target = get_target(name)
        here = target.probe()
        todo = "build INT8 and FP32, run, time" if here.can_run else "build INT8"
        if here.can_run and is_emulated(target):
            todo = "build INT8, run emulated"
        steps.append(Step(name, todo, "" if here.can_build else here.reason))
    return (*steps, Step("report", "report.json and report.html"))


def run_recipe(
    recipe: Recipe, out: Path, *, strict: bool = False, progress: Progress | None = None
) -> Report:
    """Train, quantize, build, measure and report.

    Args:
        recipe: What to do.
        out: Folder of the run. One that holds an unfinished run is resumed.
        strict: Fail the build of a target that tells that less of it runs in INT8 than
            ``accept.int8_coverage_min``, or than every layer with weights where the recipe sets no bound.
        progress: Hears how far it is.

    Returns:
        The report, also written to ``report.json`` and ``report.html`` in `out`.

    Raises:
        MissingExtraError: If torch is absent.
        EdgeAttnError: What any stage raises; finished stages stay.
    """
    for package in ("torch", "nncf", "onnxruntime"):
        require(package, purpose="running a recipe")
    from edgeattn.pipeline_train import prepare

    progress = progress or SilentProgress()
    space = Workspace(out, progress)
    prepared = prepare(recipe, space, _profiles(recipe), progress)
    work = _workload(recipe, prepared)
    results: dict[str, TargetResult] = {}
    reasons = _judge_float(recipe, prepared)
    bound = recipe.accept.int8_coverage_min
    wanted = (STRICT_COVERAGE if bound is None else bound) if strict else None
    for name in recipe.targets:
        measured = deploy(name, work, out, progress, strict=wanted)
        results[name] = measured.result
        reasons += judge_target(name, measured, recipe.accept)
    if not any(result.status in ("ok", "built") for result in results.values()):
        reasons.append(
            ReasonResult(bound="targets", passed=False, text="no target of the recipe is available here")
        )
    report = _report(recipe, prepared, space, results, reasons)
    write_report(report, out, input_sheet(work.images, recipe.data.preprocess))
    return report


def _tune_steps(recipe: Recipe) -> tuple[Step, ...]:
    if recipe.tune is None:
        return ()
    name, kind = recipe.targets[0], recipe.attention.kind
    target = get_target(name)
    here = target.probe()
    policies = f" and {len(recipe.tune.policies)} policies{' for each gate' if recipe.tune.by_gate else ''}"
    if recipe.tune.rank_by == "dla":
        return (
            Step("tune", f"plan the exact forms of {kind} for DLA", "" if kind != "none" else _NO_ATTENTION),
        )
    counts = not here.can_run and here.can_build and target.profile == "s8"
    how = "count the kernels of" if counts else "time"
    what = f"{how} the exact forms of {kind}{policies} on {name}"
    if kind == "none":
        return (Step("tune", what, _NO_ATTENTION),)
    return (Step("tune", what, "" if here.can_run or counts else here.reason),)


_NO_ATTENTION = "there is no attention"


def _edge_form(recipe: Recipe) -> str:
    if recipe.attention.kind == "none":
        return "the network"
    if recipe.tune is not None and recipe.attention.edge_form is None:
        return "the fastest edge form"
    form = recipe.attention.edge_form or preferred_forms(*recipe.targets)[recipe.attention.kind]
    return f"edge form {form}"


def _profiles(recipe: Recipe) -> tuple[str, ...]:
    return tuple(dict.fromkeys(get_target(name).profile for name in recipe.targets))


def _workload(recipe: Recipe, prepared: Prepared) -> Workload:
    measure = recipe.measure
    timing = (
        TimingPlan.quick(threads=measure.threads)
        if measure.quick
        else TimingPlan(
            min_runs=measure.latency_runs, min_seconds=measure.latency_seconds, threads=measure.threads
        )
    )
    return Workload(
        fp32=prepared.fp32,
        qdq=prepared.qdq,
        images=prepared.images,
        labels=prepared.labels,
        reference_logits=prepared.reference_logits,
        timing=timing,
        layers=prepared.layers,
    )


def _judge_float(recipe: Recipe, prepared: Prepared) -> list[ReasonResult]:
    bound = recipe.accept.float_top1_min
    if bound is None:
        return []
    top1 = prepared.fp32_result.top1
    if top1 is None:
        raise RecipeError("accept.float_top1_min needs labels, which this data set does not have.")
    passed = top1 >= bound
    text = f"float top-1 {top1:.2%} over {prepared.fp32_result.n} images, "
    text += f"{'meets' if passed else 'misses'} at least {bound:.2%}"
    return [ReasonResult(bound="float_top1_min", wanted=bound, got=top1, passed=passed, text=text)]


def _report(
    recipe: Recipe,
    prepared: Prepared,
    space: Workspace,
    results: dict[str, TargetResult],
    reasons: list[ReasonResult],
) -> Report:
    from edgeattn.measure import describe_environment

    return Report(
        recipe=recipe.to_json(),
        fingerprint=recipe.fingerprint(),
        environment=describe_environment(),
        verdict="pass" if all(reason.passed for reason in reasons) else "fail",
        reasons=reasons,
        fp32=Fp32Result(**prepared.fp32_result.model_dump()),
        stages=space.stages,
        training=[EpochResult(**record) for record in prepared.training],
        quant=prepared.quant,
        sensitivity={profile: list(found) for profile, found in prepared.sensitivity.items()},
        domain=prepared.domain,
        targets=results,
    )
