"""The photographs that a kit carries: few, spread over the classes, small, and read alike by every kit's decoder."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeattn.data.image_set import ImageSet

__all__ = ["LARGEST_BYTES", "Photograph", "pick_images", "take_photograph"]

LARGEST_BYTES = 512 * 1024
"""A kit is carried to a device: a few photographs must not outweigh the model many times."""
_LONGEST_SIDE = 1024
"""Of a copy: larger ones take seconds to compress, and never fit."""
_SHRINK = 0.75


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A file of a kit.

    Attributes:
        index: Of the image that it is of, in its set.
        suffix: Of its name.
        data: Its content.
        rgb: What every decoder makes of it, (height, width, 3).
    """

    index: int
    suffix: str
    data: bytes
    rgb: NDArray[np.uint8]


def pick_images(images: ImageSet, count: int) -> list[int]:
    """Choose about `count` images, spread evenly over the classes and within each; always the same ones.

    Files above 512 KiB are passed over where a class has smaller ones.

    Returns:
        Indices, the classes taking turns.
    """
    small = np.array([_is_small(images, index) for index in range(len(images))], dtype=bool)
    by_class = []
    for label in np.unique(images.labels):
        members = images.labels == label
        by_class.append(np.flatnonzero(members & small if (members & small).any() else members))
    quota = max(1, count // max(len(by_class), 1))
    chosen: list[int] = []
    for turn in range(quota):
        for places in by_class:
            if turn < len(places) and len(chosen) < count:
                chosen.append(int(places[turn * len(places) // min(quota, len(places))]))
    return chosen


def take_photograph(images: ImageSet, index: int) -> Photograph:
    """Return an image's own file, where it is small and every kit's decoder reads it alike; else a PNG, smaller if it must.

    Raises:
        DataError: If the image cannot be read.
    """
    rgb = images.image(index)
    stored = _as_stored(images, index) if _is_small(images, index) else None
    if stored is not None:
        return Photograph(index, *stored, rgb)
    share = min(1.0, _LONGEST_SIDE / max(rgb.shape[:2]))
    while True:
        copy = rgb if share == 1.0 else _scaled(rgb, share)
        data = _as_png(copy)
        if len(data) <= LARGEST_BYTES:
            return Photograph(index, ".png", data, copy)
        share *= _SHRINK


def _is_small(images: ImageSet, index: int) -> bool:
    path = images.path(index)
    return path is None or path.stat().st_size <= LARGEST_BYTES


def _as_stored(images: ImageSet, index: int) -> tuple[str, bytes] | None:
    path = images.path(index)
    if path is None:
        return None
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        suffix = {"JPEG": ".jpg", "PNG": ".png"}.get(image.format or "")
        turned = image.getexif().get(0x0112, 1) != 1
        if suffix is None or turned or image.mode not in ("RGB", "L") or "transparency" in image.info:
            return None
    return suffix, data


def _scaled(rgb: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    height, width = (max(8, round(side * share)) for side in rgb.shape[:2])
    return np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR), dtype=np.uint8)


def _as_png(rgb: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, format="PNG", optimize=True)
    return stream.getvalue()
