"""Read an image file that may be anything, into 8-bit RGB or a clear refusal.

Decisions, so that every reader of the same file sees the same pixels:

* EXIF orientation is applied; colour profiles are ignored.
* Greyscale, palette, CMYK and YCbCr become RGB as Pillow converts them.
* Transparent pixels are composited on white. An alpha channel that hides nothing changes nothing.
* 16 bits per channel keep the high byte: exact for 8-bit values that were widened.
* 32-bit and floating-point pixels are refused, because their range is not known.
* Files of several frames (animations, multi-page TIFF) are refused: which one was meant is not known.
* JPEG files are decoded at full size. Decoding at a reduced scale is faster and gives other numbers.
"""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgeattn.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_IMAGE_PIXELS",
    "MIN_IMAGE_SIDE",
    "check_image",
    "is_image_name",
    "load_image",
]

MAX_IMAGE_PIXELS = 40_000_000
MIN_IMAGE_SIDE = 8

# Only decoders that stay inside this process: EPS, for one, would start Ghostscript. JPEG opens a
# camera's MPO files as well.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_AS_RGB = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"})
_WITH_ALPHA = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is taken for an image; hidden files are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def load_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image file into upright 8-bit RGB.

    Args:
        path: A JPEG, PNG, BMP, WebP, TIFF, GIF or PPM file of one frame.

    Returns:
        Pixels of shape (height, width, 3), writable and contiguous.

    Raises:
        DataError: If the file is missing, empty, truncated, not an image, of several frames, of an
            unsupported pixel type, smaller than 8 pixels a side, or larger than 40 megapixels. The
            size is read from the header, before anything is decoded.
    """
    with _opened(path) as image:
        image.load()
        orientation = image.getexif().get(_EXIF_ORIENTATION)
        rgb = _to_rgb(image, path)
    upright = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    if upright is not None:
        rgb = rgb.transpose(upright)
    return np.array(rgb, dtype=np.uint8)


def check_image(path: Path) -> tuple[int, int]:
    """Check an image's header without decoding its pixels.

    Returns:
        Width and height in pixels, as stored.

    Raises:
        DataError: For what `load_image` refuses, as far as the header tells.
    """
    with _opened(path) as image:
        return image.size


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open, check the header, and turn whatever the decoder raises into a DataError."""
    _check_regular_file(path)
    try:
        # Pillow warns about odd metadata and large sizes; the first does not matter here and the
        # second is checked below, against our own limit.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                _check_header(image, path)
                yield image
    except DataError:
        raise
    except UnidentifiedImageError as exc:
        raise DataError(
            f"{path} is not an image that can be read here (its content is none of "
            f"{', '.join(_FORMATS)}). Convert it to JPEG or PNG, or remove it."
        ) from exc
    except Image.DecompressionBombError as exc:
        raise DataError(_too_large(path, str(exc))) from exc
    except PermissionError as exc:
        raise DataError(f"{path} cannot be read: permission denied. Change its permissions.") from exc
    except Exception as exc:  # decoders raise nearly anything on hostile bytes
        raise DataError(
            f"{path} cannot be decoded: {str(exc) or type(exc).__name__}. The file is truncated or corrupt; "
            "replace or remove it."
        ) from exc


def _check_regular_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as exc:
        raise DataError(f"Image {path} cannot be opened: {exc.strerror}. Check the path.") from exc
    except ValueError as exc:  # a NUL in the name
        raise DataError(f"Image path {str(path)!r} is not valid: {exc}. Check the path.") from exc
    # A FIFO or a device would block or never end.
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is not a regular file, so not an image. Name an image file.")
    if status.st_size == 0:
        raise DataError(f"{path} is empty (0 bytes). Replace or remove it.")


def _check_header(image: Image.Image, path: Path) -> None:
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise DataError(_too_large(path, f"{width} x {height} = {width * height / 1e6:.1f} megapixels"))
    if min(width, height) < MIN_IMAGE_SIDE:
        raise DataError(
            f"{path} is {width} x {height} pixels; each side must be at least {MIN_IMAGE_SIDE}. "
            "Replace or remove it."
        )
    # The further pictures of an MPO file (a camera's JPEG) are previews of the first.
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1 and image.format != "MPO":
        raise DataError(
            f"{path} holds {frames} frames ({image.format}); a single picture is expected. "
            "Save the frame you mean as its own file."
        )


def _too_large(path: Path, got: str) -> str:
    return (
        f"{path} is too large: {got}; the limit is {MAX_IMAGE_PIXELS // 1_000_000} megapixels. "
        "Scale it down or remove it."
    )


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    mode = image.mode
    # Pillow's own conversion from 16 bits has clipped in some releases and shifted in others.
    if mode in _SIXTEEN_BIT:
        return _from_sixteen_bit(np.asarray(image))
    if mode == "I" and image.format in ("PNG", "PPM"):  # how older Pillow opens 16-bit files
        return _from_sixteen_bit(np.asarray(image))
    if mode in _WITH_ALPHA or (mode in _AS_RGB and "transparency" in image.info):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if mode in _AS_RGB:
        return image.convert("RGB")
    raise DataError(
        f"{path} has pixels of Pillow mode {mode!r} ({image.format}), whose range is not known. "
        "Convert it to 8-bit RGB."
    )


def _from_sixteen_bit(grey: NDArray[np.generic]) -> Image.Image:
    return Image.fromarray((grey.astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
