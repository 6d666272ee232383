"""From the folder of a finished run, or of `edgeattn quantize`, to a kit's ``model/`` folder."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from edgeattn.artifact import OnnxArtifact, sha256_of_bytes, sha256_of_file, verify_sha256
from edgeattn.data.datasets import load_dataset
from edgeattn.data.image_set import DataSplits
from edgeattn.data.preprocess import normalize_pixels, resize_and_crop
from edgeattn.data.spec import DataSpec
from edgeattn.errors import ArtifactError, EdgeAttnError, RecipeError
from edgeattn.export.artifacts import save_artifact
from edgeattn.kit.from_quantized import KitSource, kit_name, quantized_source, without_softmax
from edgeattn.kit.model_folder import add_file, write_manifest
from edgeattn.kit.photographs import pick_images, take_photograph
from edgeattn.kit.plain_input import take_plain_images
from edgeattn.kit.spec import (
    WEB_VARIANT,
    KitFile,
    KitModel,
    KitTensor,
    ModelFile,
    NamedFile,
    Reference,
    ReferenceImage,
    Thresholds,
)
from edgeattn.kit.web_model import optimize_for_web
from edgeattn.lower import lower_artifact
from edgeattn.measure import run_session
from edgeattn.onnx_graph import Graph
from edgeattn.progress import Progress, SilentProgress
from edgeattn.report import Report, load_report
from edgeattn.targets import get_target

__all__ = ["DEFAULT_IMAGES", "KitRequest", "build_model", "describe_export"]

DEFAULT_IMAGES = 40

_FLOAT = "fp32"
_REFERENCE_TARGET = "ort-cpu"
_OF_PROFILE = {"u8": "ort-cpu", "s8": "tensorrt-rtx"}
_VARIANT_TARGETS = {"openvino": "openvino-cpu"}
# Integer kernels of another runtime round some values one step differently, and later layers carry that on.
_TOLERANCE_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class KitRequest:
    """What goes into a model folder.

    Attributes:
        profile: Spelling of the model: ``u8`` for CPUs and browsers, ``s8`` for TensorRT.
        variants: Further spellings by runtime: ``openvino``, ``web``.
        images: Reference photographs, spread over the classes.
        data: Folder of the data set, where the run's recipe names another place; None: the recipe's. Of a model that
            `edgeattn quantize` took in, photographs; None: those that calibrated.
        classes: File of class names, one a line, for a model that `edgeattn quantize` took in.
        min_confidence: Below this probability an answer is shown as not sure.
    """

    profile: Literal["u8", "s8"] = "u8"
    variants: tuple[str, ...] = ()
    images: int = DEFAULT_IMAGES
    data: Path | None = None
    classes: Path | None = None
    min_confidence: float = 0.5


def build_model(
    run: Path, folder: Path, request: KitRequest, *, progress: Progress | None = None
) -> KitModel:
    """Write the model folder of a run: lowered model, photographs, expected outputs, ``model.json``.

    The expected outputs are computed here, by ONNX Runtime.

    Args:
        run: Folder that `edgeattn run` or `edgeattn quantize` wrote.
        folder: Where to; empty or absent.
        request: What goes in.
        progress: Hears how far it is.

    Raises:
        ArtifactError: If the run is unfinished, failed, was changed since, or lacks the profile.
        RecipeError: If the run has no classes or data to take photographs from.
        DataError: If the data set cannot be used.
        TargetUnavailable: If ONNX Runtime is absent.
    """
    progress = progress or SilentProgress()
    report = load_report(run)
    if report.verdict != "pass":
        missed = [reason.text for reason in report.reasons if not reason.passed]
        raise ArtifactError(
            f"The run in {run} failed its own bounds, so no kit is made of it: {'; '.join(missed)}. "
            "Improve it, or change the bounds under accept in its recipe, and run it again (it resumes)."
        )
    exported = describe_export(run, request.profile)
    source = _source(report, run, exported.outputs[0].shape[1], request, progress)
    if request.profile == "s8" and source.takes is not None and source.takes.channels == "gray":
        raise RecipeError(
            f"Kits for TensorRT take colour images, and the model in {run} takes gray ones: TensorRT would compute luma in "
            "float16. Make a python, cpp or web kit."
        )
    with tempfile.TemporaryDirectory(prefix="edgeattn-kit-") as scratch:
        work = Path(scratch)
        if request.profile == "u8":
            measured = get_target(_REFERENCE_TARGET).lower(exported, work)
            _check_is_what_was_measured(report, run, measured)
        exported = _for_kits(exported, source, work)
        # After QAT the weights are others, and the distance from the float network says nothing of roundings.
        kept = report.quant.get("method") == "ptq" and (run / f"model.{_FLOAT}.onnx").is_file()
        floating = _for_kits(describe_export(run, _FLOAT), source, work) if kept else None
        lowered = _carried(exported, request, work)
        model_file = add_file(folder, f"model.{request.profile}.onnx", lowered.path.read_bytes())
        variants = {
            name: _variant(name, model_file.file, exported, folder, work) for name in request.variants
        }
        reference, files = _reference(source, exported, floating, request, folder, work, progress)
    text = reference.model_dump_json(indent=1)
    model = KitModel(
        name=kit_name(report.name),
        description=str(report.recipe.get("description") or ""),
        model=ModelFile(
            **model_file.model_dump(),
            profile=request.profile,
            opset=lowered.opset,
            input=KitTensor(name=lowered.inputs[0].name, shape=lowered.inputs[0].shape),
            output=KitTensor(name=lowered.outputs[0].name, shape=lowered.outputs[0].shape),
        ),
        preprocess=source.preprocess,
        classes=source.classes,
        thresholds=Thresholds(min_confidence=request.min_confidence),
        reference=add_file(folder, "reference.json", (text + "\n").encode()),
        variants=variants,
        files=files,
    )
    write_manifest(model, folder / "model.json")
    return model


def describe_export(run: Path, profile: str) -> OnnxArtifact:
    """Describe a run's QDQ graph again: the run keeps the file, not its description.

    Raises:
        ArtifactError: If there is none in that profile, or it is no classifier with one input.
    """
    import onnx

    path = run / f"model.{profile}.onnx"
    if not path.is_file():
        there = sorted(item.name for item in run.glob("model.*.onnx"))
        raise ArtifactError(
            f"The run in {run} has no model in profile {profile} ({path.name}); it has: "
            f"{', '.join(there) or 'none'}. Add a target of that profile ({_OF_PROFILE[profile]}) to its recipe, or as "
            "--target of `edgeattn quantize`, and run it again."
        )
    try:
        graph = Graph(onnx.load(str(path)))
        inputs, outputs = graph.io_specs()
        opset = graph.opset
    except EdgeAttnError:
        raise
    except Exception as exc:  # protobuf's own error type depends on its backend
        raise ArtifactError(f"{path} is not an ONNX model: {exc}. Run the recipe again.") from exc
    if len(inputs) != 1 or len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise ArtifactError(f"{path} is no classifier: expected one input and one output of shape (1, K).")
    return OnnxArtifact(path, sha256_of_file(path), opset, inputs, outputs, profile)


# ------------------------------------------------------------------------------------ pieces


def _source(report: Report, run: Path, outputs: int, request: KitRequest, progress: Progress) -> KitSource:
    if not isinstance(report.recipe.get("data"), dict):
        return quantized_source(report, run, outputs, request.data, request.classes)
    if request.classes is not None:
        raise RecipeError(f"The data set of the run in {run} names its classes: leave out --classes.")
    spec = _data_spec(report, run, request.data)
    splits = load_dataset(spec, run, lambda done, total: progress.update("data", done, total))
    return KitSource(splits.validation, True, spec.preprocess, _class_names(splits, outputs))


def _carried(exported: OnnxArtifact, request: KitRequest, work: Path) -> OnnxArtifact:
    """Return the graph spelled so that the device that it is carried to computes the same integers."""
    if request.profile == "s8":
        return get_target("tensorrt").lower(exported, work)
    target = "ort-web" if WEB_VARIANT in request.variants else "ort-portable"
    return lower_artifact(exported, target=target, workdir=work)


def _for_kits(exported: OnnxArtifact, source: KitSource, work: Path) -> OnnxArtifact:
    """Return the graph from the images that kits prepare to logits; the graph itself where it is so already."""
    import onnx

    graph = Graph(onnx.load(str(exported.path)))
    changed = [without_softmax(graph), source.takes is not None and take_plain_images(graph, source.takes)]
    if not any(changed):
        return exported
    return save_artifact(graph.to_model(), work / f"kit.{exported.profile}.onnx", exported.profile)


def _data_spec(report: Report, run: Path, data: Path | None) -> DataSpec:
    try:
        spec = DataSpec.model_validate(report.recipe["data"])
    except ValidationError as exc:
        raise ArtifactError(f"{run}: report.json holds no valid data section: {exc}. Run it again.") from exc
    if data is not None:
        return spec.model_copy(update={"root": data.absolute()})
    root = spec.root
    if root is not None and not root.is_absolute() and not str(root).startswith(("$", "~")):
        raise RecipeError(
            f"The recipe of {run} names its data relative to the recipe's file ({root}), and the run does "
            "not know where that was. Say where the data lies: --data DIR."
        )
    return spec


def _check_is_what_was_measured(report: Report, run: Path, lowered: OnnxArtifact) -> None:
    """ONNX Runtime's engine is the lowered file itself, so its hash is in the report."""
    measured = report.targets.get(_REFERENCE_TARGET)
    if measured is None or measured.engine is None:
        return
    verify_sha256(run / measured.engine.path, measured.engine.sha256)
    if measured.engine.sha256 != lowered.sha256:
        raise ArtifactError(
            f"model.u8.onnx in {run} does not give the engine whose accuracy the report states: it was "
            "changed, or another version of edgeattn made the run. Run the recipe again with the same --out."
        )


def _variant(name: str, model_file: str, exported: OnnxArtifact, folder: Path, work: Path) -> NamedFile:
    if name == WEB_VARIANT:
        return add_file(folder, f"model.{name}.onnx", optimize_for_web(folder / model_file))
    target = _VARIANT_TARGETS.get(name)
    if target is None:
        raise RecipeError(
            f"Unknown variant {name!r}; there is: {', '.join((*_VARIANT_TARGETS, WEB_VARIANT))}."
        )
    lowered = get_target(target).lower(exported, work)
    return add_file(folder, f"model.{name}.onnx", lowered.path.read_bytes())


def _class_names(splits: DataSplits, outputs: int) -> tuple[str, ...]:
    if splits.num_classes > outputs:
        raise ArtifactError(
            f"The data set has {splits.num_classes} classes now, the model {outputs}. Restore the data set."
        )
    # A network may have more outputs than the data has classes.
    return (*splits.class_names, *(str(index) for index in range(splits.num_classes, outputs)))


def _reference(
    source: KitSource,
    exported: OnnxArtifact,
    floating: OnnxArtifact | None,
    request: KitRequest,
    folder: Path,
    work: Path,
    progress: Progress,
) -> tuple[Reference, dict[str, KitFile]]:
    images, preprocess = source.images, source.preprocess
    photographs = [take_photograph(images, index) for index in pick_images(images, request.images)]
    pixels = [resize_and_crop(item.rgb, preprocess) for item in photographs]
    batch = np.stack([normalize_pixels(item, preprocess) for item in pixels])
    logits = _answers(exported, batch, work / "engine")
    tolerance = float(_TOLERANCE_SHARE * np.abs(logits).max())
    if floating is not None:
        # Two engines that round differently are about as far from each other as each is from the float network.
        tolerance = max(tolerance, float(np.abs(logits - _answers(floating, batch, work / "float")).max()))
    second, first = np.sort(logits, axis=1)[:, -2:].T
    kept = np.flatnonzero(first - second > tolerance)
    if not len(kept):
        kept = np.argmax(first - second, keepdims=True)
    if len(kept) < len(photographs):
        progress.note(
            f"{len(photographs) - len(kept)} photographs left out: their answer hangs on a rounding"
        )
    entries, names = [], list[NamedFile]()
    for number, place in enumerate(kept, 1):
        item = photographs[place]
        names.append(add_file(folder, f"images/{number:04d}{item.suffix}", item.data))
        entries.append(
            ReferenceImage(
                file=names[-1].file,
                sha256=names[-1].sha256,
                pixels_sha256=sha256_of_bytes(pixels[place].tobytes()),
                label=int(images.labels[item.index]) if source.labelled else None,
                top1=int(logits[place].argmax()),
                logits=tuple(float(value) for value in logits[place]),
            )
        )
    reference = Reference(
        runtime=f"{_REFERENCE_TARGET} {get_target(_REFERENCE_TARGET).probe().version}",
        tolerance=tolerance,
        images=tuple(entries),
    )
    return reference, {n.file: KitFile(sha256=n.sha256, size_bytes=n.size_bytes) for n in names}


def _answers(model: OnnxArtifact, batch: NDArray[np.float32], work: Path) -> NDArray[np.float32]:
    target = get_target(_REFERENCE_TARGET)
    work.mkdir(parents=True, exist_ok=True)
    engine = target.build(target.lower(model, work), work)
    with target.open(engine) as session:
        return run_session(session, batch, model.inputs[0].name, model.outputs[0].name)
