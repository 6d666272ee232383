"""Quantize a network that people bring as an ONNX file, and build engines from it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

import edgeattn
from edgeattn.answers import Answers
from edgeattn.artifact import OnnxArtifact, sha256_of_bytes
from edgeattn.data.calibration import MIN_CALIBRATION_IMAGES, spread
from edgeattn.data.model_input import ImageOptions
from edgeattn.export.artifacts import save_artifact
from edgeattn.export.from_onnx import load_float_onnx
from edgeattn.export.qdq import emit_qdq
from edgeattn.export.reorder import reorder_channels
from edgeattn.extras import require
from edgeattn.measure import describe_environment, run_session
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_coverage import STRICT_COVERAGE
from edgeattn.pipeline_deploy import Workload, deploy, judge_target
from edgeattn.pipeline_images import IMAGES, inputs_for, prepare_images, record_seen
from edgeattn.pipeline_layers import layer_results
from edgeattn.pipeline_sensitivity import sensitivity_results
from edgeattn.pipeline_workspace import Workspace
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
from edgeattn.report_inputs import input_sheet
from edgeattn.targets import TimingPlan, get_target, target_names

__all__ = [
    "quantize_onnx",
    "sensitivity_images",
]

_LARGEST_CALIBRATION = 256
_PLAN = "plan.json"
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
    of classifiers only. A call with the same model, images and options in the same folder goes on from the plan that
    an earlier one found, so that another target costs no second calibration.

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
    loaded = inputs_for(data, shape, progress, prepared, limit)
    tensors = loaded.tensors
    # Every other one: folders are sorted, by class or by time, and either half would be a part of the world.
    shares = len(tensors) >= 2 * MIN_CALIBRATION_IMAGES
    images, held_out = (tensors[::2], tensors[1::2]) if shares else (tensors, tensors)
    out.mkdir(parents=True, exist_ok=True)
    space = Workspace(out, progress)
    planned = _plan(space, float_model, images, config or PtqConfig(), progress)
    record_seen(out, loaded.digests[::2] if shares else loaded.digests)
    source = {"source": model.name}
    fp32 = save_artifact(float_model, out / "model.fp32.onnx", "fp32", source)
    profiles: dict[str, Profile] = {"u8": "u8", "s8": "s8"}
    spelled = {
        profile: _spell(planned, profile, images, held_out, out / f"model.{profile}.onnx", source, progress)
        for profile in dict.fromkeys(profiles[target.profile] for target in chosen.values())
    }
    work = Workload(
        fp32=fp32,
        qdq={profile: item.artifact for profile, item in spelled.items()},
        images=held_out,
        labels=None,
        reference_logits=_reference_logits(fp32, held_out, out),
        timing=TimingPlan(min_runs=256, min_seconds=5.0),
        layers={profile: item.layers for profile, item in spelled.items()},
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
        stages=space.stages,
        quant={
            "method": planned.plan.method,
            "calibration_images": planned.images,
            "held_out_images": len(held_out) if shares else 0,
            "ladder": [step.model_dump() for step in planned.plan.ladder],
            "provenance": dict(planned.plan.provenance),
        },
        sensitivity={profile: item.sensitivity for profile, item in spelled.items()},
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
    write_report(report, out, input_sheet(held_out, prepared))
    return report


@dataclasses.dataclass(frozen=True)
class _Planned:
    """A float graph as it is quantized, and its plan.

    Attributes:
        model: With pixels for an image and gates by channel, where those were taken.
        plan: Its plan.
        images: How many the plan was made with.
    """

    model: ModelProto
    plan: QuantPlan
    images: int


@dataclasses.dataclass(frozen=True)
class _Spelled:
    artifact: OnnxArtifact
    layers: list[LayerResult]
    sensitivity: list[SensitivityResult]


def _plan(
    space: Workspace,
    model: ModelProto,
    images: NDArray[np.float32],
    config: PtqConfig,
    progress: Progress,
) -> _Planned:
    """Calibrate, or take the plan of an earlier call for the same model, images and options."""
    from edgeattn.quant.channel_equalization import gated_if_better
    from edgeattn.quant.channel_gates import channel_gates, with_channel_gates
    from edgeattn.quant.output_weights import weigh_outputs
    from edgeattn.quant.pixel_input import pixel_model
    from edgeattn.quant.ptq import make_plan

    batches = [images[place][None] for place in spread(len(images), _LARGEST_CALIBRATION)]
    key = {
        "version": edgeattn.__version__,
        "graph": sha256_of_bytes(model.SerializeToString(deterministic=True)),
        "images": _fingerprint(batches),
        "ptq": config.model_dump(mode="json"),
    }
    weigh_outputs(model, batches)
    in_pixels = pixel_model(model, batches) if config.pixels else None
    plain = in_pixels or model

    def calibrate() -> dict[str, Any]:
        trial = functools.partial(progress.update, "swishes")
        gated = gated_if_better(plain, batches, config, trial)
        chosen = gated or plain
        plan = make_plan(
            chosen,
            batches,
            config,
            (),
            functools.partial(progress.update, "ptq"),
            frozenset(item.bias for item in channel_gates(Graph(chosen))),
            plain=model if in_pixels else None,
        )
        plan.save(space.folder / _PLAN)
        return {"channel_gates": gated is not None}

    done = space.run("ptq", key, [_PLAN], calibrate)
    gated = with_channel_gates(plain) if done["channel_gates"] else None
    return _Planned(gated or plain, QuantPlan.load(space.folder / _PLAN), len(batches))


def _spell(
    planned: _Planned,
    profile: Profile,
    images: NDArray[np.float32],
    held_out: NDArray[np.float32],
    path: Path,
    source: dict[str, str],
    progress: Progress,
) -> _Spelled:
    """Write the quantized graph of a profile, and measure its layers."""
    model, plan = planned.model, planned.plan
    quantized = emit_qdq(model, plan, profile, reorders_channels=False)
    spelled = reorder_channels(quantized, model, plan, profile, [image[None] for image in held_out[:8]])
    adjusted = Graph(model)
    apply_plan_constants(adjusted, plan, profile)
    return _Spelled(
        save_artifact(spelled, path, profile, source),
        layer_results(adjusted.to_model(), quantized, plan, profile, held_out[:8]),
        sensitivity_results(
            model,
            plan,
            profile,
            [image[None] for image in images[: sensitivity_images(model, plan)]],
            (),
            functools.partial(progress.update, f"sensitivity {profile}"),
        ),
    )


def _fingerprint(batches: Sequence[NDArray[np.float32]]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(str(batch.shape).encode())
        digest.update(np.ascontiguousarray(batch).data)
    return digest.hexdigest()


def sensitivity_images(model: ModelProto, plan: QuantPlan) -> int:
    """Return on how many images layers are measured one by one: fewer where images and networks are large."""
    graph = Graph(model)
    shapes = graph.shapes()
    numbers = sum(math.prod(shapes.get(name, ())) for node in graph.nodes for name in node.output)
    work = max(numbers * len(plan.activations), 1)
    return int(min(max(_SENSITIVITY_WORK // work, 1), _SENSITIVITY_IMAGES))


def _reference_logits(
    artifact: OnnxArtifact, images: NDArray[np.float32], folder: Path
) -> NDArray[np.float32]:
    """Run a graph as it is in ONNX Runtime."""
    runtime = get_target("ort-cpu")
    workdir = folder / "reference"
    workdir.mkdir(parents=True, exist_ok=True)
    engine = runtime.build(artifact, workdir)
    with runtime.open(engine) as session:
        return run_session(session, images, artifact.inputs[0].name, Answers.of(artifact.outputs).names)
