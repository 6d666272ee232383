"""Decode once: image sets as arrays, in memory or in a file that later runs map back in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeattn.artifact import atomic_write
from edgeattn.data.image_set import ImageSet, bad_images_error
from edgeattn.data.model_input import ModelInput, Preparation
from edgeattn.data.preprocess import frame_of, normalize_pixels, resize_and_crop
from edgeattn.data.spec import Augmentation, Preprocess
from edgeattn.errors import DataError

__all__ = ["iterate_batches", "load_pixels", "materialize", "training_geometry"]

Progress = Callable[[int, int], None]

_CACHE_VERSION = 1
_MOST_IN_MEMORY = 8 << 30
"""Numbers of all images together."""
_MOST_BAD_IMAGES = 100
# Room around the evaluated size, so that random crops and turns are cut from real pixels.
_TRAINING_MARGIN = 1.15
_LARGEST_TRAINING_SIZE = 1024


def training_geometry(preprocess: Preprocess, augmentation: Augmentation) -> Preprocess:
    """Return the preprocessing whose 8-bit images training keeps and augments.

    Without geometric augmentation it is `preprocess` itself, so training sees exactly the images of
    evaluation. With it, images keep a margin: 1.15 x size when they are squashed, and all of the
    resized square when they are cropped.
    """
    geometric = (
        augmentation.crop_scale != (1.0, 1.0) or augmentation.rotate_degrees > 0 or augmentation.translate > 0
    )
    if not geometric:
        return preprocess
    wanted = round(preprocess.size * _TRAINING_MARGIN) if preprocess.resize is None else preprocess.resize
    size = max(preprocess.size, min(wanted, _LARGEST_TRAINING_SIZE))
    return preprocess.model_copy(update={"size": size})


def load_pixels(
    images: ImageSet,
    preprocess: Preparation,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """Decode, resize and crop every image; later calls with the same `cache_dir` read the result.

    Args:
        images: The set.
        preprocess: Its geometry and its order of channels are used.
        cache_dir: Folder for the result; the file's name is a fingerprint of the images' content and
            the geometry. None keeps it in memory only.
        progress: Called with (done, total) while decoding.

    Returns:
        uint8 of shape (count, height, width, channels); read-only and mapped from disk when cached.

    Raises:
        DataError: If images cannot be used (how many, and the first few), or would not fit memory.
        ArtifactError: If the cache cannot be written.
    """
    shape = (len(images), *frame_of(preprocess))
    if cache_dir is None:
        _check_memory(shape, 1)
        pixels = np.empty(shape, dtype=np.uint8)
        for index, image in enumerate(_decode(images, preprocess, progress)):
            pixels[index] = image
        return pixels
    path = cache_dir / f"pixels-{_cache_key(images, preprocess)}.npy"
    cached = _read_cache(path, shape)
    if cached is not None:
        return cached
    # Plain writes, not a writable memory map: on a full disk those raise, a map kills the process.
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for image in _decode(images, preprocess, progress):
            stream.write(image.tobytes())
    written = _read_cache(path, shape)
    if written is None:
        raise DataError(
            f"The image cache {path} changed while it was written. Use a cache folder of its own."
        )
    return written


def materialize(
    images: ImageSet,
    preprocess: Preparation,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Return every image as a network input.

    Returns:
        float32 of shape (count, channels, height, width), or channels last, bit-equal to `preprocess_image` of each image.

    Raises:
        DataError: If images cannot be used (how many, and the first few), or would not fit memory.
    """
    height, width, channels = frame_of(preprocess)
    one = preprocess.shape if isinstance(preprocess, ModelInput) else (channels, height, width)
    shape = (len(images), *one)
    _check_memory(shape, 4)
    ready: Iterable[NDArray[np.uint8]]
    if cache_dir is None:
        ready = _decode(images, preprocess, progress)
    else:
        ready = load_pixels(images, preprocess, cache_dir=cache_dir, progress=progress)
    # One by one: what happens on the way to float32 needs several times the memory of the result.
    tensors = np.empty(shape, np.float32)
    for index, image in enumerate(ready):
        tensors[index] = normalize_pixels(image, preprocess)
    return tensors


def iterate_batches(
    images: ImageSet, preprocess: Preprocess, batch_size: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Yield (inputs, labels) in order, decoding as it goes: for sets that do not fit memory.

    Yields:
        float32 of shape (<= batch_size, 3, size, size) and int64 of shape (<= batch_size,).

    Raises:
        DataError: If an image cannot be used; the message names it.
    """
    for start in range(0, len(images), batch_size):
        chosen = images.subset(range(start, min(start + batch_size, len(images))))
        yield materialize(chosen, preprocess), chosen.labels


def _decode(
    images: ImageSet, preprocess: Preparation, progress: Progress | None
) -> Iterator[NDArray[np.uint8]]:
    """Yield each image at its final size; bad ones are collected and reported together."""
    bad: list[DataError] = []
    for index in range(len(images)):
        try:
            image = _fit(images.image(index), images.ids[index], preprocess)
        except DataError as exc:
            bad.append(exc)
            if len(bad) == _MOST_BAD_IMAGES:
                break
            continue
        if not bad:
            yield image
        if progress is not None:
            progress(index + 1, len(images))
    if bad:
        raise bad_images_error(bad, len(images))


def _fit(image: NDArray[np.uint8], name: str, preprocess: Preparation) -> NDArray[np.uint8]:
    try:
        return resize_and_crop(image, preprocess)
    except DataError as exc:
        raise DataError(f"{name}: {exc}") from exc


def _check_memory(shape: tuple[int, ...], bytes_each: int) -> None:
    count = int(np.prod(shape, dtype=np.int64))
    if count > _MOST_IN_MEMORY:
        raise DataError(
            f"{shape[0]} images as an array of shape {shape} need {count * bytes_each / 1e9:.1f} GB of memory. "
            "Take fewer or smaller ones, or give a cache folder."
        )


def _cache_key(images: ImageSet, preprocess: Preparation) -> str:
    geometry = preprocess.model_dump(mode="json", exclude={"mean", "std"})
    text = json.dumps([_CACHE_VERSION, images.fingerprint, geometry])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_cache(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Map a cached array, or return None if there is none of this shape."""
    try:
        # Not numpy.load, which also opens zip archives and pickles.
        pixels = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):  # absent or damaged: it is made again
        return None
    if pixels.shape != shape or pixels.dtype != np.uint8:
        return None
    return pixels
