"""Work on files that people bring: quantize an ONNX, time engines, compare targets."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeattn.answers import Answers
from edgeattn.artifact import OnnxArtifact
from edgeattn.data.calibration import MIN_CALIBRATION_IMAGES, spread
from edgeattn.data.model_input import ImageOptions
from edgeattn.errors import RecipeError, TargetUnavailable
from edgeattn.export.artifacts import save_artifact
from edgeattn.export.from_onnx import load_float_onnx
from edgeattn.export.qdq import emit_qdq
from edgeattn.export.reorder import reorder_channels
from edgeattn.extras import require
from edgeattn.measure import compare_engines, describe_environment, measure_latency, run_session
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_coverage import STRICT_COVERAGE
from edgeattn.pipeline_deploy import Workload, deploy, judge_target
from edgeattn.pipeline_images import IMAGES, inputs_for, prepare_images
from edgeattn.pipeline_layers import layer_results
from edgeattn.pipeline_sensitivity import sensitivity_results
from edgeattn.progress import Progress, SilentProgress
from edgeattn.quant.apply import apply_plan_constants
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.plan import Profile, QuantPlan
from edgeattn.recipe import Accept
from edgeattn.report import (
    Fp32Result,
    LayerResult,
    ReasonResult,
    Report,
    SensitivityResult,
    write_report,
)
from edgeattn.targets import TimingPlan, get_target, load_engine, target_names

__all__ = [
    "bench_engines",
    "quantize_onnx",
    "sensitivity_images",
    "reference_logits",
]

_LARGEST_CALIBRATION = 256
_SENSITIVITY_IMAGES = 8
_SENSITIVITY_WORK = 8e9
"""Numbers that are computed for the sensitivity of a profile at most, about: each unit's turn computes the network again."""


def quantize_onnx(
    model: Path,
    calibration: str | Path,
    out: Path,
    *,
    targets: Sequence[str] = (),
    config: PtqConfig | None = None,
    accept: Accept | None = None,
    strict: bool = False,
    progress: Progress | None = None,
    input_shape: Sequence[int] | None = None,
    image_options: ImageOptions | None = None,
    limit: int | None = None,
) -> Report:
    """Quantize a float32 ONNX network and build engines from it.

    Agreement and SQNR are measured on every other image of the calibration data, which the ranges never saw; agreement
    of classifiers only.

    Args:
        model: ONNX file with one float32 NCHW image input of fixed size, batch 1. Its outputs may be of any shape.
        calibration: A manifest, a folder of images, or an .npy file of float32 NCHW inputs.
        out: Folder for engines and report.
        targets: Names; empty means every target that builds here.
        config: How ranges follow from samples; None means the defaults.
        accept: Bounds that the report is judged by.
        strict: Fail the build of a target that tells that less of it runs in INT8 than
            ``accept.int8_coverage_min``, or than every layer with weights where there is no bound.
        progress: Hears how far it is.
        input_shape: (1, C, H, W) where the model leaves sizes open. None takes an open batch for 1.
        image_options: How images become inputs. What it leaves open follows from what the model does to its image first
            (`image_guess`); where that tells nothing they are cropped and normalized as for ImageNet.
        limit: Use at most so many images, spread evenly.

    Raises:
        MissingExtraError: If torch is absent.
        RecipeError: If `image_options` does not fit the model.
        ModelError: If the file is not such a model.
        DataError: If the calibration data cannot be used with it.
    """
    require("torch", purpose="quantizing a model")
    from edgeattn.quant.channel_equalization import gated_if_better
    from edgeattn.quant.channel_gates import channel_gates
    from edgeattn.quant.output_weights import weigh_outputs
    from edgeattn.quant.pixel_input import pixel_model
    from edgeattn.quant.ptq import make_plan

    progress = progress or SilentProgress()
    names = list(targets) or [name for name in target_names() if get_target(name).probe().can_build]
    chosen = {name: get_target(name) for name in names}
    float_model = load_float_onnx(model, input_shape)
    graph = Graph(float_model)
    shape = graph.io_specs()[0][0].shape
    data = Path(calibration)
    prepared = prepare_images(graph, data, image_options)
    if prepared is not None:
        progress.note(f"images: {prepared.describe()}")
    tensors = inputs_for(data, shape, progress, prepared, limit)
    # Every other one: folders are sorted, by class or by time, and either half would be a part of the world.
    shares = len(tensors) >= 2 * MIN_CALIBRATION_IMAGES
    images, held_out = (tensors[::2], tensors[1::2]) if shares else (tensors, tensors)
    config, batches = (
        config or PtqConfig(),
        [images[place][None] for place in spread(len(images), _LARGEST_CALIBRATION)],
    )
    weigh_outputs(float_model, batches)
    in_pixels = pixel_model(float_model, batches) if config.pixels else None
    planned = in_pixels or float_model
    trial = functools.partial(progress.update, "swishes")
    planned = gated_if_better(planned, batches, config, trial) or planned
    plan = make_plan(
        planned,
        batches,
        config,
        (),
        lambda done, total: progress.update("ptq", done, total),
        frozenset(item.bias for item in channel_gates(Graph(planned))),
        plain=float_model if in_pixels else None,
    )
    out.mkdir(parents=True, exist_ok=True)
    plan.save(out / "plan.json")
    source = {"source": model.name}
    fp32 = save_artifact(float_model, out / "model.fp32.onnx", "fp32", source)
    qdq: dict[str, OnnxArtifact] = {}
    layers: dict[str, list[LayerResult]] = {}
    sensitivity: dict[str, list[SensitivityResult]] = {}
    profiles: dict[str, Profile] = {"u8": "u8", "s8": "s8"}
    for profile in (profiles[target.profile] for target in chosen.values()):
        if profile in qdq:
            continue
        quantized = emit_qdq(planned, plan, profile, reorders_channels=False)
        examples = [image[None] for image in held_out[:8]]
        spelled = reorder_channels(quantized, planned, plan, profile, examples)
        qdq[profile] = save_artifact(spelled, out / f"model.{profile}.onnx", profile, source)
        adjusted = Graph(planned)
        apply_plan_constants(adjusted, plan, profile)
        layers[profile] = layer_results(adjusted.to_model(), quantized, plan, profile, held_out[:8])
        sensitivity[profile] = sensitivity_results(
            planned,
            plan,
            profile,
            [image[None] for image in images[: sensitivity_images(planned, plan)]],
            (),
            functools.partial(progress.update, f"sensitivity {profile}"),
        )
    work = Workload(
        fp32=fp32,
        qdq=qdq,
        images=held_out,
        labels=None,
        reference_logits=reference_logits(fp32, held_out, out),
        timing=TimingPlan(min_runs=256, min_seconds=5.0),
        layers=layers,
    )
    report = Report(
        recipe={
            "name": model.stem,
            "model": model.name,
            "calibration": str(calibration),
            "input_shape": list(shape),
            IMAGES: None if prepared is None else prepared.model_dump(mode="json"),
        },
        fingerprint=fp32.sha256,
        environment=describe_environment(),
        verdict="pass",
        fp32=Fp32Result(n=len(held_out)),
        quant={
            "method": plan.method,
            "calibration_images": len(batches),
            "held_out_images": len(held_out) if shares else 0,
            "ladder": [step.model_dump() for step in plan.ladder],
            "provenance": dict(plan.provenance),
        },
        sensitivity=sensitivity,
    )
    reasons: list[ReasonResult] = []
    accept = accept or Accept()
    bound = accept.int8_coverage_min
    wanted = (STRICT_COVERAGE if bound is None else bound) if strict else None
    for name in chosen:
        measured = deploy(name, work, out, progress, strict=wanted)
        report.targets[name] = measured.result
        reasons += judge_target(name, measured, accept)
    report.reasons = reasons
    report.verdict = "pass" if all(reason.passed for reason in reasons) else "fail"
    write_report(report, out)
    return report


def sensitivity_images(model: ModelProto, plan: QuantPlan) -> int:
    """Return on how many images layers are measured one by one: fewer where images and networks are large."""
    graph = Graph(model)
    shapes = graph.shapes()
    numbers = sum(math.prod(shapes.get(name, ())) for node in graph.nodes for name in node.output)
    work = max(numbers * len(plan.activations), 1)
    return int(min(max(_SENSITIVITY_WORK // work, 1), _SENSITIVITY_IMAGES))


def bench_engines(
    engines: Sequence[Path], target: str, versus: str | None, plan: TimingPlan
) -> dict[str, Any]:
    """Time engines of one target in alternation, over several sessions of each.

    Args:
        engines: Engine files with their manifests.
        target: The target that built them.
        versus: Path of the engine that ratios refer to; None means the first.
        plan: How long.

    Raises:
        RecipeError: If an engine belongs to another target, or `versus` is not among them.
    """
    runtime = get_target(target)
    available = runtime.probe()
    if not available.can_run:
        raise TargetUnavailable(f"{target} cannot run here: {available.reason} {available.install}".rstrip())
    loaded = {str(path): load_engine(path) for path in engines}
    for path, engine in loaded.items():
        if engine.target != target:
            raise RecipeError(
                f"{path} was built by {engine.target}, not {target}. Pass --target {engine.target}."
            )
    if versus is not None and versus not in loaded:
        loaded[versus] = load_engine(Path(versus))
    first = next(iter(loaded.values()))
    if any(engine.inputs[0].shape != first.inputs[0].shape for engine in loaded.values()):
        raise RecipeError("The engines take inputs of different shapes; compare like with like.")
    sample = np.random.default_rng(0).standard_normal(first.inputs[0].shape).astype(np.float32)
    feeds = {first.inputs[0].name: sample}
    openers = {
        name: functools.partial(runtime.open, engine, threads=plan.threads) for name, engine in loaded.items()
    }
    if len(openers) > 1:
        comparison = compare_engines(openers, feeds, plan, baseline=versus)
        return {"target": target, **comparison.to_json()}
    (name, opener), *_ = openers.items()
    with opener() as session:
        latency = measure_latency(session, feeds, plan)
    return {"target": target, "baseline": name, "latencies": {name: latency.to_json()}, "ratios": {}}


def reference_logits(
    artifact: OnnxArtifact, images: NDArray[np.float32], folder: Path
) -> NDArray[np.float32]:
    """Run a graph as it is in ONNX Runtime."""
    runtime = get_target("ort-cpu")
    workdir = folder / "reference"
    workdir.mkdir(parents=True, exist_ok=True)
    engine = runtime.build(artifact, workdir)
    with runtime.open(engine) as session:
        return run_session(session, images, artifact.inputs[0].name, Answers.of(artifact.outputs).names)
