"""A labelled sequence of images that are decoded when asked for."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeattn.artifact import sha256_of_bytes, sha256_of_file
from edgeattn.data.images import check_image, load_image
from edgeattn.data.spec import DataSpec
from edgeattn.errors import ArtifactError, DataError

__all__ = [
    "ArraySource",
    "DataSplits",
    "FileSource",
    "ImageSet",
    "ImageSource",
    "bad_images_error",
    "check_images",
]

# Enough to see the pattern; a folder of broken files must not fill the screen.
_NAMED_BAD_IMAGES = 5


class ImageSource(Protocol):
    """Where the pixels of an image set come from."""

    def read(self, position: int) -> NDArray[np.uint8]:
        """Return 8-bit RGB of shape (height, width, 3)."""
        ...

    def check(self, position: int) -> None:
        """Raise DataError if the image can be seen to be unusable without decoding it."""
        ...

    def digest(self, position: int) -> str:
        """Return the SHA-256 of the stored content."""
        ...

    def path(self, position: int) -> Path | None:
        """Return the image's file, or None if it has none."""
        ...


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Image files, decoded on every read."""

    paths: tuple[Path, ...]

    def read(self, position: int) -> NDArray[np.uint8]:
        """Decode one file."""
        return load_image(self.paths[position])

    def check(self, position: int) -> None:
        """Read one file's header."""
        check_image(self.paths[position])

    def digest(self, position: int) -> str:
        """Hash one file."""
        try:
            return sha256_of_file(self.paths[position])
        except ArtifactError as exc:
            raise DataError(f"Image {self.paths[position]} cannot be read. Check the file.") from exc

    def path(self, position: int) -> Path | None:
        """Return the file."""
        return self.paths[position]


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images in memory: uint8 of shape (count, height, width, 3)."""

    pixels: NDArray[np.uint8]

    def read(self, position: int) -> NDArray[np.uint8]:
        """Return one image."""
        image: NDArray[np.uint8] = self.pixels[position]
        return image

    def check(self, position: int) -> None:
        """Accept: an array has no header to be wrong."""

    def digest(self, position: int) -> str:
        """Hash one image's shape and pixels."""
        pixels = self.pixels[position]
        return sha256_of_bytes(repr(pixels.shape).encode() + pixels.tobytes())

    def path(self, position: int) -> Path | None:
        """Return None: an array is no file."""
        return None


class ImageSet:
    """An ordered, labelled set of images.

    Args:
        source: Reads pixels by position in the source.
        ids: Name of each image: a path relative to the data set's root, or an index.
        labels: Class index of each image.
        positions: Where each image lies in the source; by default 0, 1, 2...
    """

    def __init__(
        self,
        source: ImageSource,
        ids: Sequence[str],
        labels: Sequence[int] | NDArray[np.integer],
        positions: Sequence[int] | NDArray[np.integer] | None = None,
    ) -> None:
        self._source = source
        self._positions = np.asarray(range(len(ids)) if positions is None else positions, dtype=np.int64)
        self.ids: tuple[str, ...] = tuple(ids)
        self.labels: NDArray[np.int64] = np.array(labels, dtype=np.int64)
        self.labels.setflags(write=False)  # shared by every subset and cache; a change would not reach them
        if not len(self.ids) == len(self.labels) == len(self._positions):
            raise ValueError(
                f"ids, labels and positions differ in length: {len(self.ids)}, {len(self.labels)}, "
                f"{len(self._positions)}"
            )

    @classmethod
    def from_array(cls, pixels: NDArray[np.uint8], labels: Sequence[int] | NDArray[np.integer]) -> ImageSet:
        """Wrap uint8 images of shape (count, height, width, 3)."""
        return cls(ArraySource(pixels), [str(index) for index in range(len(pixels))], labels)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], int]]:
        for index in range(len(self)):
            yield self.image(index), int(self.labels[index])

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decode one image.

        Returns:
            8-bit RGB of shape (height, width, 3).

        Raises:
            DataError: If its file cannot be used; the message names it.
        """
        return self._source.read(int(self._positions[index]))

    def check(self, index: int) -> None:
        """Check one image's header.

        Raises:
            DataError: If its file cannot be used; the message names it.
        """
        self._source.check(int(self._positions[index]))

    def path(self, index: int) -> Path | None:
        """Return one image's file; None if the images do not come from files."""
        return self._source.path(int(self._positions[index]))

    def subset(self, indices: Sequence[int] | NDArray[np.integer]) -> ImageSet:
        """Return the images at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return ImageSet(
            self._source, [self.ids[i] for i in chosen], self.labels[chosen], self._positions[chosen]
        )

    @functools.cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each image's stored content; reads every file once."""
        return tuple(self._source.digest(int(position)) for position in self._positions)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ids, labels and contents in order; reads every file once."""
        digest = hashlib.sha256()
        for name, label, content in zip(self.ids, self.labels, self.digests, strict=True):
            digest.update(f"{name}\0{label}\0{content}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class DataSplits:
    """A data set, divided for training and validation.

    Attributes:
        train: Images to learn from and to draw calibration images from.
        validation: Images to measure on.
        class_names: Name of each class index.
        spec: What was loaded; None for splits made in memory.
    """

    train: ImageSet
    validation: ImageSet
    class_names: tuple[str, ...]
    spec: DataSpec | None = None

    @property
    def num_classes(self) -> int:
        """Number of class indices, used or not."""
        return len(self.class_names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over both splits and the class names; reads every file once."""
        parts = (self.train.fingerprint, self.validation.fingerprint, *self.class_names)
        return sha256_of_bytes("\0".join(parts).encode(errors="surrogateescape"))


def check_images(images: ImageSet) -> None:
    """Check the header of every image, decoding none.

    Raises:
        DataError: If any cannot be used: how many, and the first few.
    """
    bad: list[DataError] = []
    for index in range(len(images)):
        try:
            images.check(index)
        except DataError as exc:
            bad.append(exc)
    if bad:
        raise bad_images_error(bad, len(images))


def bad_images_error(bad: Sequence[DataError], checked: int) -> DataError:
    """Return one error that stands for several unusable images out of `checked`."""
    if len(bad) == 1:
        return bad[0]
    shown = "\n".join(f"  - {exc}" for exc in bad[:_NAMED_BAD_IMAGES])
    more = len(bad) - _NAMED_BAD_IMAGES
    tail = f"\n  - and {more} more" if more > 0 else ""
    return DataError(f"{len(bad)} of {checked} images cannot be used:\n{shown}{tail}")
