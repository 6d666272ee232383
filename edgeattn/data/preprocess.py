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
from edgeattn.data.model_input import ModelInput, Preparation
from edgeattn.data.spec import Preprocess
from edgeattn.errors import DataError

__all__ = [
    "frame_of",
    "normalize_pixels",
    "place_in_frame",
    "preprocess_image",
    "resize_and_crop",
    "resized_size",
]

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
_BORDER = 114
"""Grey of letterboxes, as YOLO's trainers use it."""


def preprocess_image(rgb: NDArray[np.uint8], preprocess: Preparation) -> NDArray[np.float32]:
    """Turn one decoded image into a network input.

    Args:
        rgb: Pixels of shape (height, width, 3).
        preprocess: What to do.

    Returns:
        Contiguous float32 of shape (channels, height, width); channels last where `preprocess` says so.

    Raises:
        DataError: If `rgb` is not 8-bit RGB, or is so elongated that resizing it would not fit memory.
    """
    return normalize_pixels(resize_and_crop(rgb, preprocess), preprocess)


def frame_of(preprocess: Preparation) -> tuple[int, int, int]:
    """Return (height, width, channels) of an image that is ready to be normalized."""
    if isinstance(preprocess, ModelInput):
        return preprocess.height, preprocess.width, preprocess.depth
    return preprocess.size, preprocess.size, 3


def resized_size(width: int, height: int, preprocess: Preparation) -> tuple[int, int]:
    """Return (width, height) after resizing and before cropping or bordering.

    The side that decides becomes exactly what it must; the other is rounded down, as torchvision does.
    """
    if isinstance(preprocess, Preprocess):
        if preprocess.resize is None:
            return preprocess.size, preprocess.size
        return _scaled(width, height, preprocess.resize, preprocess.resize, covers=True)
    frame = (preprocess.width, preprocess.height)
    if preprocess.fit == "stretch":
        return frame
    if preprocess.fit == "letterbox":
        return _scaled(width, height, *frame, covers=False)
    covering = (round(side / preprocess.crop_pct) for side in frame)
    return _scaled(width, height, *covering, covers=True)


def _scaled(width: int, height: int, wide: int, high: int, *, covers: bool) -> tuple[int, int]:
    """Return the size in proportion that just covers, or just fits into, a frame."""
    by_width = (width * high <= height * wide) == covers
    if by_width:
        other = wide * height // width
        return wide, max(high, other) if covers else max(1, other)
    other = high * width // height
    return (max(wide, other) if covers else max(1, other)), high


def resize_and_crop(rgb: NDArray[np.uint8], preprocess: Preparation) -> NDArray[np.uint8]:
    """Resize with Pillow's antialiased filters, and crop around the centre or add borders, on 8-bit pixels.

    Args:
        rgb: Pixels of shape (height, width, 3).
        preprocess: Its geometry is used, and its order of channels.

    Returns:
        Contiguous uint8 of shape `frame_of(preprocess)`.

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
            f"An image of {width} x {height} pixels would become {new_width} x {new_height} when its short side is "
            "resized. It is too elongated; crop it, or have images squashed (a recipe's resize: null) or stretched."
        )
    image = Image.fromarray(np.ascontiguousarray(rgb))
    # One axis at a time, always the horizontal one first, as every Pillow before 13 does it. Pillow 13
    # starts with the vertical one where that costs less, and pixels are rounded in between: portrait
    # photographs would differ by a level or more between versions, and from the kits.
    for step in ((new_width, height), (new_width, new_height)):
        if step != image.size:
            image = image.resize(step, _RESAMPLING[preprocess.interpolation])
    return place_in_frame(np.array(image, dtype=np.uint8), preprocess)


def place_in_frame(
    pixels: NDArray[np.uint8], preprocess: Preparation, *, down: int = 0, right: int = 0
) -> NDArray[np.uint8]:
    """Crop a resized image around its centre, or add borders, and bring its channels into order.

    Args:
        pixels: RGB of shape (height, width, 3).
        preprocess: The frame, and the order of channels.
        down: Pixels that a crop lies below the centre.
        right: Pixels that it lies to its right.

    Returns:
        Contiguous uint8 of shape `frame_of(preprocess)`.
    """
    height, width, _ = frame_of(preprocess)
    # Half-way offsets round to even, as torchvision's CenterCrop does.
    left = round((pixels.shape[1] - width) / 2) + right
    top = round((pixels.shape[0] - height) / 2) + down
    image = Image.fromarray(pixels)
    if pixels.shape[1] < width or pixels.shape[0] < height:
        bordered = Image.new("RGB", (width, height), (_BORDER,) * 3)
        bordered.paste(image, (-left, -top))
        image = bordered
    elif (left, top, *image.size) != (0, 0, width, height):
        image = image.crop((left, top, left + width, top + height))
    return _in_order(image, preprocess)


def _in_order(image: Image.Image, preprocess: Preparation) -> NDArray[np.uint8]:
    channels = preprocess.channels if isinstance(preprocess, ModelInput) else "rgb"
    if channels == "gray":
        return np.array(image.convert("L"), dtype=np.uint8)[..., None]
    pixels = np.array(image, dtype=np.uint8)
    return np.ascontiguousarray(pixels[..., ::-1]) if channels == "bgr" else pixels


def normalize_pixels(pixels: NDArray[np.uint8], preprocess: Preparation) -> NDArray[np.float32]:
    """Scale 8-bit pixels to [0, 1], subtract the mean and divide by the deviation, in float32.

    Args:
        pixels: Shape (..., height, width, channels).
        preprocess: `mean` and `std` are used.

    Returns:
        Contiguous float32 of shape (..., channels, height, width); channels last where `preprocess` says so.
    """
    mean = np.asarray(preprocess.mean, dtype=np.float32)
    std = np.asarray(preprocess.std, dtype=np.float32)
    scaled: NDArray[Any] = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    if isinstance(preprocess, ModelInput) and preprocess.layout == "nhwc":
        return np.ascontiguousarray(scaled)
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))
