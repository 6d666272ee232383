"""The one definition of how pixels become the network's input.

Training's evaluation, calibration and measurement all call these functions, so they cannot differ.
Geometry happens on 8-bit pixels (`resize_and_crop`), arithmetic on float32 (`normalize_pixels`);
between the two, images can be cached without changing a bit of the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeattn.data.images import MAX_IMAGE_PIXELS
from edgeattn.data.spec import Preprocess
from edgeattn.errors import DataError

__all__ = ["normalize_pixels", "preprocess_image", "resize_and_crop", "resized_size"]

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


def preprocess_image(rgb: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """Turn one decoded image into a network input.

    Args:
        rgb: Pixels of shape (height, width, 3).
        preprocess: What to do.

    Returns:
        Contiguous float32 of shape (3, size, size).

    Raises:
        DataError: If `rgb` is not 8-bit RGB, or is so elongated that resizing it would not fit memory.
    """
    return normalize_pixels(resize_and_crop(rgb, preprocess), preprocess)


def resized_size(width: int, height: int, preprocess: Preprocess) -> tuple[int, int]:
    """Return (width, height) after resizing and before cropping.

    The short side becomes `preprocess.resize`; the long side is rounded down, as torchvision does.
    """
    if preprocess.resize is None:
        return preprocess.size, preprocess.size
    short = preprocess.resize
    if width <= height:
        return short, max(short, short * height // width)
    return max(short, short * width // height), short


def resize_and_crop(rgb: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Resize with Pillow's antialiased filters and crop around the centre, on 8-bit pixels.

    Args:
        rgb: Pixels of shape (height, width, 3).
        preprocess: `size`, `resize` and `interpolation` are used.

    Returns:
        Contiguous uint8 of shape (size, size, 3).

    Raises:
        DataError: If `rgb` is not 8-bit RGB, or is so elongated that resizing it would not fit memory.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise DataError(
            f"Expected 8-bit RGB pixels of shape (height, width, 3), got {rgb.dtype} {rgb.shape}. "
            "Read images with load_image."
        )
    height, width = rgb.shape[:2]
    new_width, new_height = resized_size(width, height, preprocess)
    # The larger of what the two steps of the resize make.
    if new_width * max(height, new_height) > MAX_IMAGE_PIXELS:
        raise DataError(
            f"An image of {width} x {height} pixels would become {new_width} x {new_height} with "
            f"resize: {preprocess.resize}. It is too elongated; crop it, or set resize to null."
        )
    image = Image.fromarray(np.ascontiguousarray(rgb))
    # One axis at a time, always the horizontal one first, as every Pillow before 13 does it. Pillow 13
    # starts with the vertical one where that costs less, and pixels are rounded in between: portrait
    # photographs would differ by a level or more between versions, and from the kits.
    for step in ((new_width, height), (new_width, new_height)):
        if step != image.size:
            image = image.resize(step, _RESAMPLING[preprocess.interpolation])
    size = preprocess.size
    # Half-way offsets round to even, as torchvision's CenterCrop does.
    left = round((new_width - size) / 2)
    top = round((new_height - size) / 2)
    if (new_width, new_height) != (size, size):
        image = image.crop((left, top, left + size, top + size))
    return np.array(image, dtype=np.uint8)


def normalize_pixels(pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """Scale 8-bit pixels to [0, 1], subtract the mean and divide by the deviation, in float32.

    Args:
        pixels: Shape (..., height, width, 3).
        preprocess: `mean` and `std` are used.

    Returns:
        Contiguous float32 of shape (..., 3, height, width).
    """
    mean = np.asarray(preprocess.mean, dtype=np.float32)
    std = np.asarray(preprocess.std, dtype=np.float32)
    scaled: NDArray[Any] = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))
