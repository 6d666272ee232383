"""The decoded images that a training run works on."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeattn.data.image_set import DataSplits, ImageSet
from edgeattn.data.pixels import load_pixels, training_geometry
from edgeattn.data.spec import Augmentation, Preprocess
from edgeattn.errors import DataError

__all__ = ["Progress", "TrainArrays", "decode_splits", "hash_arrays"]


class Progress(Protocol):
    """Hears how far long work has come."""

    def update(self, stage: str, done: int, total: int, **metrics: float) -> None:
        """Take note that `done` of `total` units of `stage` are finished."""
        ...


@dataclasses.dataclass(frozen=True)
class TrainArrays:
    """Decoded images, for callers that have no image files.

    Attributes:
        train_pixels: uint8 of shape (n, stored, stored, 3), where stored is
            ``training_geometry(preprocess, augmentation).size``.
        train_labels: Class indices of shape (n,).
        validation_pixels: uint8 of shape (m, size, size, 3).
        validation_labels: Class indices of shape (m,).
    """

    train_pixels: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    validation_pixels: NDArray[np.uint8]
    validation_labels: NDArray[np.int64]


def decode_splits(
    data: DataSplits | TrainArrays,
    preprocess: Preprocess,
    augmentation: Augmentation,
    cache_dir: Path | None,
    progress: Progress | None,
) -> TrainArrays:
    """Decode both splits, training's at its own geometry; arrays are checked and passed on.

    Raises:
        DataError: If images cannot be used, or validation pixels have another shape.
    """
    if isinstance(data, TrainArrays):
        expected = (len(data.validation_labels), preprocess.size, preprocess.size, 3)
        if data.validation_pixels.shape != expected or data.validation_pixels.dtype != np.uint8:
            raise DataError(
                f"Validation pixels must be uint8 of shape {expected}, got "
                f"{data.validation_pixels.dtype} {data.validation_pixels.shape}. Load them with load_pixels."
            )
        return data

    def load(images: ImageSet, geometry: Preprocess) -> NDArray[np.uint8]:
        def report(done: int, total: int) -> None:
            if progress is not None:
                progress.update("decode", done, total)

        return load_pixels(images, geometry, cache_dir=cache_dir, progress=report)

    return TrainArrays(
        load(data.train, training_geometry(preprocess, augmentation)),
        data.train.labels,
        load(data.validation, preprocess),
        data.validation.labels,
    )


def hash_arrays(arrays: TrainArrays) -> str:
    """Return the SHA-256 over all pixels and labels."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(arrays):
        array: NDArray[np.generic] = getattr(arrays, field.name)
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
