"""What a network sees, as a picture: a wrong crop, order of channels or normalization shows at a glance."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeattn.data.calibration import spread
from edgeattn.data.model_input import ModelInput, Preparation

__all__ = ["InputSheet", "input_sheet"]

_MOST = 12
_COLUMNS = 6
_LARGEST_SIDE = 150
_GAP = 6
_QUALITY = 85


@dataclasses.dataclass(frozen=True)
class InputSheet:
    """Some inputs of a network, as images.

    Attributes:
        jpeg: They, side by side.
        width: Of the picture, in pixels.
        caption: How they came to be.
    """

    jpeg: bytes
    width: int
    caption: str

    def data_uri(self) -> str:
        """Return the picture as part of a page."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()


def input_sheet(tensors: NDArray[np.float32], preparation: Preparation | None) -> InputSheet | None:
    """Return a picture of some inputs; None where they are no images.

    Args:
        tensors: (N, channels, height, width), or channels last; those shown are spread evenly.
        preparation: How they were made of images, which is undone. None: of each, the least and the largest value are
            black and white.
    """
    pictures = [_picture(tensors[index], preparation) for index in spread(len(tensors), _MOST)]
    shown = [picture for picture in pictures if picture is not None]
    if not shown:
        return None
    rows, (wide, high) = math.ceil(len(shown) / _COLUMNS), shown[0].size
    size = (min(len(shown), _COLUMNS) * (wide + _GAP) - _GAP, rows * (high + _GAP) - _GAP)
    sheet = Image.new("RGB", size, "white")
    for place, picture in enumerate(shown):
        sheet.paste(picture, (place % _COLUMNS * (wide + _GAP), place // _COLUMNS * (high + _GAP)))
    stream = io.BytesIO()
    sheet.save(stream, format="JPEG", quality=_QUALITY)
    return InputSheet(stream.getvalue(), sheet.width, f"{len(shown)} of {len(tensors)}; {_way(preparation)}.")


def _way(preparation: Preparation | None) -> str:
    if preparation is None:
        return "an array's values, each image from its least to its largest"
    if isinstance(preparation, ModelInput):
        return preparation.describe()
    fitted = "squashed" if preparation.resize is None else f"resized to {preparation.resize}, cropped"
    mean, std = (", ".join(f"{value:g}" for value in part) for part in (preparation.mean, preparation.std))
    return f"RGB, {fitted} to {preparation.size} x {preparation.size}, mean {mean}, deviation {std}"


def _picture(tensor: NDArray[np.float32], preparation: Preparation | None) -> Image.Image | None:
    last = isinstance(preparation, ModelInput) and preparation.layout == "nhwc"
    if tensor.ndim != 3 or tensor.shape[2 if last else 0] not in (1, 3):
        return None
    values: NDArray[Any] = (tensor if last else np.moveaxis(tensor, 0, -1)).astype(np.float64)
    if preparation is None:
        values = (values - values.min()) / max(float(np.ptp(values)), 1e-12)
    else:
        values = values * np.asarray(preparation.std) + np.asarray(preparation.mean)
    if isinstance(preparation, ModelInput) and preparation.channels == "bgr":
        values = values[..., ::-1]
    pixels = np.clip(np.rint(255 * values), 0, 255).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))
    scale = _LARGEST_SIDE / max(image.size)
    if scale >= 2:
        return image.resize((image.width * int(scale), image.height * int(scale)), Image.Resampling.NEAREST)
    if scale < 1:
        return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    return image
