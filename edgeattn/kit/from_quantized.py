"""What a kit takes from beside the model: of a run, which knows its data, or of what `edgeattn quantize` wrote."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

from edgeattn.data.datasets import folder_images
from edgeattn.data.image_set import ImageSet
from edgeattn.data.model_input import ModelInput
from edgeattn.data.spec import LARGEST_SIZE, Preprocess
from edgeattn.errors import DataError, RecipeError
from edgeattn.kit.plain_input import plain_preprocess
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_images import recorded_images
from edgeattn.quant.output_weights import answering_softmax
from edgeattn.report import Report

__all__ = ["KitSource", "kit_name", "quantized_source", "read_class_names", "without_softmax"]

_LONGEST_NAME = 200
_LARGEST_NAMES_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class KitSource:
    """What a kit takes from beside the model.

    Attributes:
        images: To choose photographs from.
        labelled: Whether their labels mean anything.
        preprocess: How they become inputs.
        classes: Name of each output.
        takes: What the model itself takes, where that may be more than kits prepare.
    """

    images: ImageSet
    labelled: bool
    preprocess: Preprocess
    classes: tuple[str, ...]
    takes: ModelInput | None = None


def quantized_source(
    report: Report, folder: Path, outputs: int, data: Path | None, classes: Path | None
) -> KitSource:
    """Return what a kit of a model that `edgeattn quantize` took in needs.

    Args:
        report: Of that command.
        folder: That it wrote.
        outputs: Number of classes.
        data: Folder of photographs; None takes the one that calibrated, where it is still there.
        classes: File of class names, one a line; None takes numbers, or the names that the model's file holds.

    Raises:
        RecipeError: If kits cannot prepare images as the model wants them, or there are no photographs.
        ArtifactError: If the report is damaged.
        DataError: If the class names or the photographs cannot be read.
    """
    takes = _takes(folder)
    place = data if data is not None else Path(str(report.recipe.get("calibration", "")))
    if data is None and not place.is_dir():
        raise RecipeError(
            f"A kit holds photographs for its self-test, and {folder} was calibrated with {str(place)!r}, which is no "
            "folder of images here. Say where some are: --data DIR."
        )
    images = folder_images(place)
    if not len(images):
        raise DataError(f"{place} holds no images. Say where photographs are: --data DIR.")
    return KitSource(images, False, plain_preprocess(takes), _class_names(folder, outputs, classes), takes)


def read_class_names(path: Path, outputs: int) -> tuple[str, ...]:
    """Return the names in a file, one a line.

    Raises:
        DataError: If it cannot be read, or holds another number of them.
    """
    try:
        if path.stat().st_size > _LARGEST_NAMES_BYTES:
            raise DataError(f"{path} is larger than a list of class names. Give one name a line.")
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(
            f"Class names {path} cannot be read: {exc}. Give a text file, one name a line."
        ) from exc
    while names and not names[-1]:
        names.pop()
    bad = next((line for line, name in enumerate(names, 1) if not 1 <= len(name) <= _LONGEST_NAME), None)
    if bad is not None:
        raise DataError(f"Line {bad} of {path} is no class name: expected 1 to {_LONGEST_NAME} characters.")
    if len(names) != outputs:
        raise DataError(f"{path} holds {len(names)} class names, but the model has {outputs} outputs.")
    return tuple(names)


def kit_name(text: str) -> str:
    """Return a file's stem as a kit's name, which has no spaces and only plain letters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:80] or "model"


def without_softmax(graph: Graph) -> bool:
    """Take a softmax off that gives the answer, in place; return whether there was one.

    Kits compute probabilities from logits by themselves. The softmax changes neither their order nor, taken twice,
    anything but how sure the answers seem.
    """
    node = answering_softmax(graph)
    if node is None:
        return False
    before = node.input[0]
    graph.nodes.remove(node)
    graph.reindex()
    maker = graph.producer.get(before)
    if maker is None or graph.consumers.get(before):
        graph.nodes.append(node)
        graph.reindex()
        return False
    maker.output[list(maker.output).index(before)] = node.output[0]
    graph.reindex()
    return True


def _takes(folder: Path) -> ModelInput:
    images = recorded_images(folder)
    if images is None:
        raise RecipeError(
            f"{folder} does not say how images become inputs, which a kit must know: the model was calibrated with an array "
            "of inputs, or by an earlier edgeattn. Quantize it with a folder of images."
        )
    if images.height != images.width or images.fit == "letterbox" or images.height > LARGEST_SIZE:
        raise RecipeError(
            f"Kits prepare square images of up to {LARGEST_SIZE} pixels, cropped or stretched; this model takes "
            f"{images.describe()}. Use the engines in {folder} with a program of your own."
        )
    return images


def _class_names(folder: Path, outputs: int, classes: Path | None) -> tuple[str, ...]:
    if classes is not None:
        return read_class_names(classes, outputs)
    return _recorded_names(folder, outputs) or tuple(map(str, range(outputs)))


def _recorded_names(folder: Path, outputs: int) -> tuple[str, ...] | None:
    """Return names that exporters keep: ``{0: 'tench', ...}`` (Ultralytics), or one a line (PaddlePaddle's converters)."""
    import onnx

    noted = Graph(onnx.load(str(folder / "model.fp32.onnx"))).metadata
    for text, read in ((noted.get("names", ""), ast.literal_eval), (noted.get("character", ""), _lines)):
        if not text or len(text) > _LARGEST_NAMES_BYTES:
            continue
        try:
            names = read(text)
            found = tuple(str(names[index])[:_LONGEST_NAME] for index in range(outputs))
        except (ValueError, SyntaxError, MemoryError, RecursionError, LookupError, TypeError):
            continue
        if all(found) and len(names) == outputs:
            return found
    return None


def _lines(text: str) -> list[str]:
    return text.split("\n")
