"""Images for models that people bring: what a model tells of them, and a folder of them as its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from edgeattn.artifact import read_json, write_json
from edgeattn.data import CalibrationSet, load_calibration
from edgeattn.data.model_input import (
    ImageOptions,
    ModelInput,
    Preparation,
    guess_normalization,
    model_input,
)
from edgeattn.errors import ArtifactError, DataError, RecipeError
from edgeattn.onnx_graph import Graph
from edgeattn.progress import Progress
from edgeattn.quant.pixel_input import preparing_nodes
from edgeattn.report import load_report

__all__ = [
    "IMAGES",
    "image_guess",
    "inputs_for",
    "prepare_images",
    "record_seen",
    "recorded_images",
    "seen_images",
]

IMAGES = "images"
"""Under which a report's recipe says how `edgeattn quantize` made inputs of images."""
_SEEN = "calibration_images.json"


def image_guess(graph: Graph) -> ImageOptions:
    """Return what a model tells of its images: by what it does to them first, and by who exported it.

    Args:
        graph: Float or quantized, with one input.
    """
    factor, shift = 1.0, 0.0
    for node in preparing_nodes(graph):
        constants = [graph.constants[item] for item in node.input if item in graph.constants]
        if not constants or node.op_type not in ("Add", "Div", "Mul", "Sub"):
            continue
        value = float(np.mean(constants[0], dtype=np.float64))
        first = node.input[0] in graph.constants
        if node.op_type == "Mul" or (node.op_type == "Div" and value and not first):
            scale = value if node.op_type == "Mul" else 1 / value
            factor, shift = factor * scale, shift * scale
        elif node.op_type == "Add":
            shift += value
        elif node.op_type == "Sub":
            factor, shift = (-factor, value - shift) if first else (factor, shift - value)
    if (factor, shift) != (1.0, 0.0):
        return ImageOptions(normalization=guess_normalization(factor, shift))
    if graph.metadata.get("author") == "Ultralytics":
        # Its predictors letterbox for everything but classifiers, and divide pixels by 255.
        whole = graph.metadata.get("task") != "classify"
        return ImageOptions(normalization="unit", fit="letterbox" if whole else "crop")
    return ImageOptions()


def prepare_images(
    graph: Graph, source: Path, options: ImageOptions | None = None, recorded: ModelInput | None = None
) -> ModelInput | None:
    """Return how images become a model's inputs; None for an array, which is used as it is.

    Args:
        graph: Float or quantized, with one input.
        source: Of images, or an .npy file.
        options: What the user says.
        recorded: What an earlier command used.

    Raises:
        ModelError: If images do not fit the model.
        RecipeError: If the options do not fit it, or there are options for an array.
    """
    if source.suffix.lower() != ".npy":
        return model_input(graph.io_specs()[0][0].shape, options, image_guess(graph), recorded)
    if options is not None and options != ImageOptions():
        raise RecipeError(
            f"{source} is an array of inputs, which is used as it is: --normalization, --fit and --bgr are for images. "
            "Leave them out, or give the images."
        )
    return None


def recorded_images(folder: Path) -> ModelInput | None:
    """Return how `edgeattn quantize` made inputs of images; None for other folders, arrays, and older reports.

    Raises:
        ArtifactError: If the report holds something else there.
    """
    if not folder.is_dir() or not (folder / "report.json").is_file():
        return None
    found: Any = load_report(folder).recipe.get(IMAGES)
    if not isinstance(found, dict):
        return None
    try:
        return ModelInput.model_validate(found)
    except ValidationError as exc:
        raise ArtifactError(
            f"{folder / 'report.json'} says of its images what is not valid: {exc}. Quantize the model again."
        ) from exc


def inputs_for(
    source: Path,
    shape: tuple[int, ...],
    progress: Progress,
    prepared: Preparation | None = None,
    limit: int | None = None,
) -> CalibrationSet:
    """Load inputs of a model's shape (1, C, H, W).

    Args:
        source: As of `load_calibration`.
        shape: Of the input.
        progress: Hears how far decoding is.
        prepared: What becomes of images; an array needs none.
        limit: Most of them, spread evenly.

    Raises:
        DataError: If they cannot be loaded, or have another shape.
    """
    found = load_calibration(
        source,
        None,
        prepared,
        limit=limit,
        progress=lambda done, total: progress.update("decode", done, total),
    )
    if found.tensors.shape[1:] != tuple(shape[1:]):
        raise DataError(
            f"{source} holds inputs of shape {found.tensors.shape[1:]}, but the model takes {tuple(shape[1:])}."
        )
    return found


def record_seen(folder: Path, digests: Sequence[str]) -> None:
    """Note in a folder which images a model was calibrated with: SHA-256 of their files."""
    write_json(folder / _SEEN, {"sha256": list(digests)})


def seen_images(folder: Path) -> frozenset[str]:
    """Return what `record_seen` noted; nothing where there is no note.

    Raises:
        ArtifactError: If the note is damaged.
    """
    path = folder / _SEEN
    if not path.is_file():
        return frozenset()
    noted = read_json(path)
    found = noted.get("sha256") if isinstance(noted, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ArtifactError(f"{path} is no list of images. Quantize the model again.")
    return frozenset(found)
