"""Images that engines are compared on: of a folder, an array, or those that a run was measured on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from edgeattn.data import DataSplits, ImageSet, load_dataset, materialize
from edgeattn.data.datasets import expand_path, folder_images
from edgeattn.data.model_input import ModelInput, Preparation
from edgeattn.data.spec import DataSpec
from edgeattn.errors import ArtifactError, DataError
from edgeattn.measure.preprocessing import InputFinding, compare_inputs
from edgeattn.pipeline_images import inputs_for
from edgeattn.progress import Progress
from edgeattn.report import load_report

__all__ = ["ParityData", "load_parity_data", "load_run"]

_LABELS = "labels.csv"


@dataclasses.dataclass(frozen=True)
class ParityData:
    """Inputs, with labels where there are any.

    Attributes:
        tensors: float32 (N, C, H, W).
        labels: (N,) class indices, or None.
        preprocess: How the inputs were made; None for an array.
        left_out: Images left out because the run learned from them or was calibrated with them.
        seen: Images among the inputs that the run learned from or was calibrated with, where those were asked for.
        sets: The images, where they are files.
        source: What they are, for people.
    """

    tensors: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    preprocess: Preparation | None
    left_out: int
    sets: tuple[ImageSet, ...]
    source: str
    seen: int = 0

    def describe(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return {
            "source": self.source,
            "labelled": self.labels is not None,
            "left_out": self.left_out,
            "seen": self.seen,
            "preprocess": None if self.preprocess is None else self.preprocess.model_dump(mode="json"),
            "prepared": self.preprocess.describe() if isinstance(self.preprocess, ModelInput) else None,
        }

    def compare_with(self, path: Path) -> InputFinding:
        """Compare the first inputs with those that something else made of the same images.

        Args:
            path: An .npy file of float32 NCHW.

        Raises:
            DataError: If it cannot be read, or these inputs were not made of images.
        """
        try:
            got = np.array(np.lib.format.open_memmap(path, mode="r"))
        except (OSError, ValueError) as exc:
            raise DataError(
                f"{path} cannot be read as an .npy array: {exc}. Write it with numpy.save."
            ) from exc
        if self.preprocess is None or not self.sets:
            raise DataError(
                "Inputs are compared with images: give a folder of images as --data, not an array."
            )
        images = [image for part in self.sets for image, _ in zip(part, range(len(got)), strict=False)]
        return compare_inputs([image for image, _ in images[: len(got)]], self.preprocess, got)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a run's report says of its data."""

    spec: DataSpec
    folder: Path


def load_run(folder: Path) -> _Run | None:
    """Return what a run's folder says of its data; None if it is no run's, or `edgeattn quantize` wrote it."""
    if not folder.is_dir() or not (folder / "report.json").is_file():
        return None
    recipe = load_report(folder).recipe
    if not isinstance(recipe.get("data"), dict):
        return None
    try:
        return _Run(DataSpec.model_validate(recipe["data"]), folder)
    except ValidationError as exc:
        raise ArtifactError(
            f"{folder / 'report.json'} holds a data specification that is not valid: {exc}."
        ) from exc


def load_parity_data(
    run: _Run | None,
    data: Path | None,
    shape: tuple[int, ...],
    progress: Progress,
    limit: int | None,
    *,
    with_seen: bool = False,
    prepared: ModelInput | None = None,
    seen: frozenset[str] = frozenset(),
) -> ParityData:
    """Load inputs of a model's shape.

    Args:
        run: The run that the model is from, if it is from one: its preprocessing is used, and what it
            trained on or was calibrated with is left out.
        data: A folder or an .npy file; None takes the run's validation split.
        shape: (1, C, H, W).
        progress: Hears how far decoding is.
        limit: Most images to use; unseen ones come first.
        with_seen: Take what the run learned from as well.
        prepared: How images become inputs of a model that is from no run.
        seen: SHA-256 of the images that such a model was calibrated with.

    Raises:
        DataError: If there are no such images.
    """
    if data is None and run is None:
        raise DataError("There is no data to compare on: give --data, a folder of images or an .npy file.")
    preprocess = run.spec.preprocess if run is not None else prepared
    if data is not None and not data.is_dir():
        tensors = inputs_for(data, shape, progress, preprocess).tensors[:limit]
        return ParityData(tensors, None, None, 0, (), data.name)
    own = _own_splits(run, data, progress)
    if preprocess is None:
        raise DataError("It is not said how images become inputs of this model: give them as an .npy file.")
    if own is not None:
        sets: tuple[ImageSet, ...] = (own.validation,)
        seen_sets: tuple[ImageSet, ...] = (own.train,)
        labelled = True
        name = own.spec.root.name if own.spec and own.spec.root else "digits"
        source = f"{name}: {'both splits' if with_seen else 'validation split'} of the run"
    else:
        folder = data if data is not None else Path()
        parts, labelled = _folder_sets(folder, progress)
        seen = seen | _seen_by(run)
        sets = _where(parts, lambda digest: digest not in seen)
        seen_sets = _where(parts, lambda digest: digest in seen)
        source = folder.name
    left_out, unseen = sum(map(len, seen_sets)), sum(map(len, sets))
    if with_seen:
        sets, left_out = (*sets, *seen_sets), 0
    if limit is not None:
        sets = _first(sets, limit)
    if not sets:
        raise DataError(
            f"No images are left of {source}: all were used for calibration or training. Give others, or take these: "
            "--with-seen."
        )
    tensors = np.concatenate(
        [
            materialize(part, preprocess, progress=lambda done, total: progress.update("decode", done, total))
            for part in sets
        ]
    )
    if tensors.shape[1:] != tuple(shape[1:]):
        raise DataError(f"The images become {tensors.shape[1:]}, but the model takes {tuple(shape[1:])}.")
    labels = np.concatenate([part.labels for part in sets]) if labelled else None
    return ParityData(tensors, labels, preprocess, left_out, sets, source, max(len(tensors) - unseen, 0))


def _own_splits(run: _Run | None, data: Path | None, progress: Progress) -> DataSplits | None:
    """Return the run's splits if `data` names the run's own data."""
    if run is None:
        return None
    if data is not None:
        if run.spec.root is None:
            return None
        try:
            root = expand_path(run.spec.root, run.folder)
        except DataError:
            return None
        if root.resolve() != data.resolve():
            return None
        spec = run.spec.model_copy(update={"root": data.resolve()})
    else:
        spec = run.spec
    return load_dataset(spec, run.folder, lambda done, total: progress.update("data", done, total))


def _seen_by(run: _Run | None) -> set[str]:
    """Return the digests of the images that a run learned from or was calibrated with, if they are here."""
    if run is None:
        return set()
    try:
        return set(load_dataset(run.spec, run.folder).train.digests)
    except DataError:
        return set()


def _folder_sets(folder: Path, progress: Progress) -> tuple[tuple[ImageSet, ...], bool]:
    """Return the images of a folder, and whether they have labels."""
    if (folder / _LABELS).is_file():
        splits = load_dataset(DataSpec(kind="labelled_files", root=folder.resolve()), folder)
        return (splits.train, splits.validation), True
    has_folders = any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())
    if has_folders:
        splits = load_dataset(DataSpec(kind="image_folder", root=folder.resolve()), folder)
        return (splits.train, splits.validation), True
    images = folder_images(folder)
    if not len(images):
        raise DataError(f"{folder} holds no images.")
    return (images,), False


def _where(parts: Sequence[ImageSet], wanted: Callable[[str], bool]) -> tuple[ImageSet, ...]:
    chosen = (part.subset([i for i, digest in enumerate(part.digests) if wanted(digest)]) for part in parts)
    return tuple(part for part in chosen if len(part))


def _first(sets: tuple[ImageSet, ...], limit: int) -> tuple[ImageSet, ...]:
    chosen = []
    for part in sets:
        if limit <= 0:
            break
        chosen.append(part.subset(range(min(limit, len(part)))))
        limit -= len(chosen[-1])
    return tuple(chosen)
