"""Parity: do these engines decide the same, where do they part, and is it rounding or a mistake."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeattn.answers import Answers
from edgeattn.artifact import OnnxArtifact
from edgeattn.data.model_input import ImageOptions
from edgeattn.errors import DataError, EdgeAttnError, ModelError, RecipeError
from edgeattn.export.artifacts import save_artifact
from edgeattn.export.from_onnx import read_fixed_onnx, read_onnx
from edgeattn.measure import compare_outputs, describe_environment, run_session
from edgeattn.measure.pair_saturation import prove_pair_saturation
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_causes import quantized_tensors
from edgeattn.pipeline_deploy import module_of
from edgeattn.pipeline_images import prepare_images, recorded_images, seen_images
from edgeattn.pipeline_parity_data import ParityData, load_parity_data, load_run
from edgeattn.pipeline_parity_verdict import judge_parity, top1_spread
from edgeattn.pipeline_probe import compare_layers
from edgeattn.progress import Progress, SilentProgress
from edgeattn.targets import Target, get_target
from edgeattn.targets.reference import make_program

__all__ = ["parity_model"]

_PROFILES = ("fp32", "u8", "s8")
_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "reference": {
        "vpmaddubsw": {"accumulate": "vpmaddubsw"},
        "vpmaddubsw-onednn": {"accumulate": "vpmaddubsw-onednn"},
        "half-away": {"rounding": "half-away"},
        "bfloat16": {"float_dtype": "bfloat16"},
    },
    "arm64": {
        "openvino": {"runtime": "openvino"},
        "openvino-int8": {"runtime": "openvino", "low_precision": True},
    },
}
_LAYER_IMAGES = 4
Array = NDArray[Any]


@dataclasses.dataclass
class _Entry:
    """One target in one profile."""

    target: Target
    profile: str
    result: dict[str, Any]
    logits: NDArray[np.float32] | None = None


def parity_model(
    model: Path,
    targets: Sequence[str],
    data: Path | None = None,
    progress: Progress | None = None,
    *,
    profiles: Sequence[str] = (),
    layer_images: int = _LAYER_IMAGES,
    limit: int | None = None,
    inputs: Path | None = None,
    with_seen: bool = False,
    input_shape: Sequence[int] | None = None,
    image_options: ImageOptions | None = None,
) -> dict[str, Any]:
    """Run one model, or a run's model, on several targets and compare their answers and their layers.

    Args:
        model: An ONNX file, float or QDQ; or a run's folder, whose quantized graph of each target's
            profile is then compared with the float one.
        targets: Names; ``reference@vpmaddubsw``, ``reference@half-away`` and the like compute otherwise, and
            ``arm64@openvino`` runs OpenVINO there. One that cannot run here is listed with the reason.
        data: A folder of images, with or without labels, or an .npy file of float32 NCHW inputs. None takes
            the images that the run was measured on. Images that the run learned from or was calibrated
            with are left out.
        progress: Hears how far it is.
        profiles: ``"u8"`` and ``"s8"``; empty means each target's own.
        layer_images: Images that layers are compared on; 0 leaves layers out.
        limit: Most images to use.
        inputs: An .npy file of what a device made of the same images, in order: its preprocessing is
            compared bit by bit.
        with_seen: Take images as well that the run learned from: for engines beside each other they are as good as
            others, and there are more of them. Top-1 is then no measure of the network.
        input_shape: (1, C, H, W) where a file leaves sizes open. None takes an open batch for 1.
        image_options: How images become inputs of a model that is from no run. What it leaves open is as
            `edgeattn quantize` did it where that wrote the model's folder, else follows from the model (`image_guess`).

    Returns:
        JSON-ready: ``n``, ``fp32``, ``targets``, ``between``, ``top1_spread``, ``pair_saturation``, ``verdict``.

    Raises:
        DataError: If the data cannot be used.
        ModelError: If the model cannot.
        RecipeError: If a profile is not one.
    """
    progress = progress or SilentProgress()
    strange = [name for name in profiles if name not in ("u8", "s8")]
    if strange:
        raise RecipeError(f"{strange[0]!r} is no profile; expected u8 or s8.")
    files = _files_of(model)
    # Before anything is decoded or run: a name may be wrong.
    entries = _entries(targets, profiles, files)
    models = {profile: read_fixed_onnx(path, input_shape) for profile, path in files.items()}
    base = models.get("fp32", next(iter(models.values())))
    graph = Graph(base)
    (given, *_), outputs = graph.io_specs()
    shape, answers = given.shape, Answers.of(outputs)
    run, prepared, seen = load_run(model), None, frozenset[str]()
    if run is not None and image_options not in (None, ImageOptions()):
        raise RecipeError(
            f"{model} is a run, whose recipe says how images become inputs: leave out --normalization, --fit and --bgr."
        )
    if run is None and data is not None:
        origin = model if model.is_dir() else model.parent
        prepared = prepare_images(graph, data, image_options, recorded_images(origin))
        seen = seen_images(origin)
    found = load_parity_data(
        run, data, shape, progress, limit, with_seen=with_seen, prepared=prepared, seen=seen
    )
    result: dict[str, Any] = {
        "schema_version": 1,
        "n": len(found.tensors),
        "data": found.describe(),
        "environment": describe_environment(),
        "targets": {},
        "between": {},
    }
    if inputs is not None:
        result["inputs"] = found.compare_with(inputs).to_json()
    with tempfile.TemporaryDirectory(prefix="edgeattn-") as folder:
        work = Path(folder)
        reference = _float_logits(base, found, work, progress, answers)
        result["fp32"] = _float_result(reference, found, answers)
        for label, entry in entries.items():
            _measure(
                label, entry, models[entry.profile], reference, found, answers, work, progress, layer_images
            )
            result["targets"][label] = entry.result
    result["between"] = _between(entries, found, answers)
    result["top1_spread"] = top1_spread(result["targets"])
    if "u8" in models and _is_quantized(models["u8"]):
        result["pair_saturation"] = _pair_saturation(models["u8"], found)
    logits = {label: entry.logits for label, entry in entries.items() if entry.logits is not None}
    result["verdict"] = judge_parity(result, logits, answers)
    return result


def _target_of(name: str) -> Target:
    """Return a target by its name; ``NAME@VARIANT`` is one with other options."""
    base, _, option = name.partition("@")
    if not option:
        return get_target(name)
    if option not in _VARIANTS.get(base, {}):
        known = "; behind ".join(f"{key}@ there may be {', '.join(_VARIANTS[key])}" for key in _VARIANTS)
        raise RecipeError(f"{name!r} is no target; behind {known}.")
    return get_target(base, **_VARIANTS[base][option])


def _entries(names: Sequence[str], profiles: Sequence[str], files: dict[str, Path]) -> dict[str, _Entry]:
    """Return what to run, by name; the profile is part of the name where a target runs in several."""
    entries: dict[str, _Entry] = {}
    for name in dict.fromkeys(names):
        try:
            target = _target_of(name)
        except EdgeAttnError as exc:
            if isinstance(exc, RecipeError):
                raise
            entries[name] = _Entry(None, "fp32", {"status": "unavailable", "reason": str(exc)})  # type: ignore[arg-type]
            continue
        accepted = getattr(target, "accepted_profiles", frozenset({target.profile}))
        wanted = [p for p in profiles if p in accepted and p in files] or (
            [target.profile if target.profile in files else next(iter(files))] if not profiles else []
        )
        here = target.probe()
        for profile in wanted:
            label = name if len(wanted) == 1 else f"{name}:{profile}"
            entry = _Entry(target, profile, {"status": "ok", "profile": profile, "version": here.version})
            if not here.can_run:
                reason = " ".join(part for part in (here.reason, here.install) if part)
                entry.result = {"status": "unavailable", "profile": profile, "reason": reason}
            entries[label] = entry
        if not wanted:
            reason = (
                f"{', '.join(profiles)} was asked for; {name} takes {', '.join(sorted(accepted))}, and the model has "
                f"{', '.join(files)}. A run has the profiles of its targets: u8 comes with ort-cpu, s8 with "
                "tensorrt-rtx among the recipe's targets"
            )
            entries[name] = _Entry(target, "fp32", {"status": "unavailable", "reason": reason})
    return entries


def _measure(
    label: str,
    entry: _Entry,
    model: ModelProto,
    reference: NDArray[np.float32],
    data: ParityData,
    answers: Answers,
    work: Path,
    progress: Progress,
    layer_images: int,
) -> None:
    if entry.result["status"] != "ok":
        return
    folder = work / label.replace(":", "-")
    folder.mkdir()
    try:
        artifact = save_artifact(model, folder / "model.onnx", entry.profile)
        lowered = entry.target.lower(artifact, folder)
        engine = entry.target.build(lowered, folder)
        images = data.tensors
        with entry.target.open(engine) as session:
            rows = []
            for done in range(len(images)):
                rows.append(
                    run_session(session, images[done : done + 1], artifact.inputs[0].name, answers.names)
                )
                progress.update(label, done + 1, len(images))
        entry.logits = np.concatenate(rows)
        entry.result |= compare_outputs(reference, entry.logits, data.labels, answers).to_json()
        if layer_images and _is_quantized(model):
            entry.result["layers"] = _layers(label, entry, model, lowered, images[:layer_images], progress)
    except EdgeAttnError as exc:
        entry.result |= {"status": "failed", "error": str(exc)}


def _layers(
    label: str,
    entry: _Entry,
    model: ModelProto,
    lowered: OnnxArtifact,
    images: NDArray[np.float32],
    progress: Progress,
) -> dict[str, Any]:
    executed = read_onnx(lowered.path)
    left = quantized_tensors(Graph(executed))
    # Where integers are padded, lowering may pad what they are made of: then the padded tensor is rounded.
    graph = Graph(model)
    padded = {node.input[0] for node in graph.nodes if node.op_type == "Pad"}
    removed = [name for name in quantized_tensors(graph) if name not in left and name not in padded]
    parity = compare_layers(
        model,
        executed,
        entry.target,
        [image[None] for image in images],
        module_of=module_of,
        removed=removed,
        progress=lambda done, total: progress.update(f"{label} layers", done, total),
    )
    return parity.to_json()


def _between(entries: dict[str, _Entry], data: ParityData, answers: Answers) -> dict[str, Any]:
    """Compare every two targets that ran."""
    ran = [(label, entry) for label, entry in entries.items() if entry.logits is not None]
    found = {}
    for index, (first, one) in enumerate(ran):
        for second, other in ran[index + 1 :]:
            if one.logits is None or other.logits is None:
                continue
            both = compare_outputs(one.logits, other.logits, data.labels, answers).to_json()
            found[f"{first}/{second}"] = {"same_profile": one.profile == other.profile, **both}
    return found


def _pair_saturation(model: ModelProto, data: ParityData) -> dict[str, Any]:
    """Say which layers can saturate without VNNI: whatever the activations, and with those of the images."""
    program = make_program(model)
    source = Graph(model).input_names[0]
    largest: dict[str, Array] = {}
    names = program.quantized_names
    for image in data.tensors[:_LAYER_IMAGES]:
        for name, integers in program.run({source: image[None]}, names).items():
            if name not in names or integers.ndim < 2:
                continue
            raw = integers.astype(np.int64) + (128 if integers.dtype == np.int8 else 0)
            peak = raw.max(axis=(0, *range(2, raw.ndim)))
            largest[name] = np.maximum(largest[name], peak) if name in largest else peak
    layers = prove_pair_saturation(model, largest)
    return {
        "images": min(_LAYER_IMAGES, len(data.tensors)),
        "layers_judged": len(layers),
        "can_saturate": sum(layer.can_saturate for layer in layers),
        "on_data": sum(bool(layer.unsafe_on_data) for layer in layers),
        "layers": [{**layer.to_json(), "module": module_of(layer.name)} for layer in layers],
    }


def _float_logits(
    model: ModelProto, data: ParityData, work: Path, progress: Progress, answers: Answers
) -> NDArray[np.float32]:
    """Run the float graph in ONNX Runtime, or without it in the reference."""
    runtime = get_target("ort-cpu")
    if not runtime.probe().can_run:
        runtime = get_target("reference")
    folder = work / "float"
    folder.mkdir()
    artifact = save_artifact(model, folder / "float.onnx", "fp32")
    engine = runtime.build(artifact, folder)
    rows = []
    with runtime.open(engine) as session:
        for done in range(len(data.tensors)):
            image = data.tensors[done : done + 1]
            rows.append(run_session(session, image, artifact.inputs[0].name, answers.names))
            progress.update("fp32", done + 1, len(data.tensors))
    return np.concatenate(rows)


def _float_result(logits: NDArray[np.float32], data: ParityData, answers: Answers) -> dict[str, Any]:
    if data.labels is None or not answers.are_classes:
        return {"n": len(logits), "top1": None}
    parity = compare_outputs(logits, logits, data.labels).to_json()
    return {"n": len(logits), "top1": parity["top1"], "top1_interval": parity["top1_interval"]}


def _is_quantized(model: ModelProto) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def _files_of(model: Path) -> dict[str, Path]:
    if not model.is_dir():
        return {_profile_of(model): model}
    files = {
        profile: model / f"model.{profile}.onnx"
        for profile in _PROFILES
        if (model / f"model.{profile}.onnx").is_file()
    }
    if "fp32" not in files:
        raise ModelError(f"{model} holds no model.fp32.onnx; give a run's folder or an ONNX file.")
    return files


def _profile_of(path: Path) -> str:
    """Return the profile of one file: by its quantized tensors, if it has any."""
    graph = Graph(read_onnx(path))
    zeros = [
        graph.constant(node.input[2]) for node in quantized_tensors(graph).values() if len(node.input) > 2
    ]
    if not quantized_tensors(graph):
        return "fp32"
    kinds = {zero.dtype for zero in zeros if zero is not None}
    if kinds == {np.dtype(np.int8)}:
        return "s8"
    if np.dtype(np.int8) in kinds:
        raise DataError(f"{path} mixes signed and unsigned activations; no target takes such a graph.")
    return "u8"
