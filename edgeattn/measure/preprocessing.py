"""Network inputs bit by bit: whether two ways of making them are one, and if not, what the other does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeattn.data.model_input import ModelInput, Preparation
from edgeattn.data.preprocess import (
    normalize_pixels,
    place_in_frame,
    resize_and_crop,
    resized_size,
)
from edgeattn.errors import DataError

__all__ = ["InputFinding", "compare_inputs"]

Pixels = NDArray[np.uint8]
_LEFT = 0.05


@dataclasses.dataclass(frozen=True)
class InputFinding:
    """What differs between two sets of network inputs.

    Attributes:
        cause: ``"equal"``, ``"rounding"`` (pixels one level apart), ``"channel-order"``, ``"resize"``,
            ``"crop"``, ``"normalization"`` or ``"unexplained"``.
        evidence: Figures that show it.
        equal_share: Share of values that are equal in every bit.
        max_abs_diff: The largest difference.
    """

    cause: str
    evidence: str
    equal_share: float
    max_abs_diff: float

    @property
    def is_error(self) -> bool:
        """Whether the inputs are not the same in every bit."""
        return self.cause != "equal"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return {**dataclasses.asdict(self), "is_error": self.is_error}


def compare_inputs(
    images: Sequence[Pixels], preprocess: Preparation, got: NDArray[np.float32]
) -> InputFinding:
    """Compare inputs that something else made of decoded images with what `preprocess` gives.

    Args:
        images: Decoded RGB, (height, width, 3) each.
        preprocess: The network's.
        got: (N, channels, height, width) float32, in the same order.

    Raises:
        DataError: If the shapes do not fit.
    """
    if not images:
        raise DataError("There are no images to compare inputs of.")
    if isinstance(preprocess, ModelInput) and preprocess.layout == "nhwc":
        preprocess = preprocess.model_copy(update={"layout": "nchw"})
        got = np.moveaxis(got, -1, 1) if got.ndim == 4 else got
    expected = np.stack(
        [normalize_pixels(resize_and_crop(image, preprocess), preprocess) for image in images]
    )
    if got.shape != expected.shape or got.dtype != np.float32:
        raise DataError(
            f"The other inputs are {got.dtype} of shape {got.shape}; expected float32 of {expected.shape}, in the "
            "order of the images."
        )
    gap = np.abs(got.astype(np.float64) - expected)
    equal, largest = float(np.mean(got == expected)), float(gap.max())
    if equal == 1.0:
        return InputFinding("equal", f"all {got.size} values are equal in every bit", 1.0, 0.0)
    error = float(np.square(gap).sum())
    what = f"{1 - equal:.2%} of the values differ, by at most {largest:.3g}"
    best: tuple[float, str, str] | None = None
    for cause, text, candidate in _candidates(images, preprocess, expected):
        left = float(np.square(got - candidate.astype(np.float64)).sum()) / error
        if left <= _LEFT and (best is None or left < best[0]):
            best = (left, cause, text)
    if best is not None:
        left, cause, text = best
        return InputFinding(cause, f"{what}; {text} explains {1 - left:.1%} of it", equal, largest)
    fitted = _fit(expected, got)
    if fitted is not None:
        return InputFinding("normalization", f"{what}; {fitted}", equal, largest)
    level = 1.01 / 255 / min(preprocess.std)
    if largest <= level:
        return InputFinding("rounding", f"{what}: at most one of 255 levels of a pixel", equal, largest)
    return InputFinding("unexplained", f"{what}; no cause that is known here explains it", equal, largest)


def _candidates(
    images: Sequence[Pixels], preprocess: Preparation, expected: NDArray[np.float32]
) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    if expected.shape[1] == 3:
        other = "RGB for BGR" if getattr(preprocess, "channels", "rgb") == "bgr" else "BGR for RGB"
        yield "channel-order", f"{other}, swapped behind the normalization", expected[:, ::-1]
        swapped = [np.ascontiguousarray(image[..., ::-1]) for image in images]
        yield "channel-order", other, _all(swapped, preprocess)
    for name in ("nearest", "bilinear", "bicubic"):
        if name != preprocess.interpolation:
            text = f"resizing with {name} for {preprocess.interpolation}"
            yield "resize", text, _all(images, preprocess.model_copy(update={"interpolation": name}))
    pixels = np.stack([_plain_bilinear(image, preprocess) for image in images])
    yield "resize", "resizing with bilinear without antialiasing", normalize_pixels(pixels, preprocess)
    for text, changed in _other_geometries(preprocess):
        yield "resize", text, _all(images, changed)
    if _has_margin(preprocess):
        for down, right in ((0, 1), (1, 0), (1, 1), (0, -1), (-1, 0), (-1, -1)):
            text = f"cropping {down:+d} pixels down and {right:+d} to the right"
            moved = np.stack([_shifted(image, preprocess, down, right) for image in images])
            yield "crop", text, normalize_pixels(moved, preprocess)


def _has_margin(preprocess: Preparation) -> bool:
    """Whether crops leave something of the image on every side."""
    if isinstance(preprocess, ModelInput):
        return preprocess.fit == "crop" and preprocess.crop_pct < 1
    return preprocess.resize is not None and preprocess.resize > preprocess.size


def _other_geometries(
    preprocess: Preparation,
) -> Iterator[tuple[str, Preparation]]:
    if isinstance(preprocess, ModelInput):
        names = {"crop": "cropping", "stretch": "stretching", "letterbox": "letterboxing"}
        for fit, doing in names.items():
            if fit != preprocess.fit:
                yield (
                    f"{doing} instead of {names[preprocess.fit]}",
                    preprocess.model_copy(update={"fit": fit}),
                )
        if preprocess.fit != "stretch":
            yield (
                "cropping without a margin",
                preprocess.model_copy(update={"fit": "crop", "crop_pct": 1.0}),
            )
    elif preprocess.resize is None:
        cropped = preprocess.model_copy(update={"resize": preprocess.size})
        yield "cropping instead of squashing to a square", cropped
    else:
        squashed = preprocess.model_copy(update={"resize": None})
        yield "squashing to a square instead of cropping", squashed
        if preprocess.resize != preprocess.size:
            whole = preprocess.model_copy(update={"resize": preprocess.size})
            yield f"resizing the short side to {preprocess.size}, not {preprocess.resize}", whole


def _all(images: Sequence[Pixels], preprocess: Preparation) -> NDArray[np.float32]:
    return np.stack([normalize_pixels(resize_and_crop(image, preprocess), preprocess) for image in images])


def _plain_bilinear(image: Pixels, preprocess: Preparation) -> Pixels:
    """Sample four neighbours, as OpenCV and graphics units do, whatever the scale."""
    width, height = resized_size(image.shape[1], image.shape[0], preprocess)
    x = (np.arange(width) + 0.5) * image.shape[1] / width - 0.5
    y = (np.arange(height) + 0.5) * image.shape[0] / height - 0.5
    columns = np.clip(np.floor(x).astype(int), 0, image.shape[1] - 1)
    rows = np.clip(np.floor(y).astype(int), 0, image.shape[0] - 1)
    next_column = np.minimum(columns + 1, image.shape[1] - 1)
    next_row = np.minimum(rows + 1, image.shape[0] - 1)
    fx, fy = np.clip(x - columns, 0, 1)[None, :, None], np.clip(y - rows, 0, 1)[:, None, None]
    source = image.astype(np.float64)
    upper = source[rows][:, columns] * (1 - fx) + source[rows][:, next_column] * fx
    lower = source[next_row][:, columns] * (1 - fx) + source[next_row][:, next_column] * fx
    pixels: Pixels = np.rint(upper * (1 - fy) + lower * fy).astype(np.uint8)
    return place_in_frame(pixels, preprocess)


def _shifted(image: Pixels, preprocess: Preparation, down: int, right: int) -> Pixels:
    size = resized_size(image.shape[1], image.shape[0], preprocess)
    kind = getattr(Image.Resampling, preprocess.interpolation.upper())
    whole = np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size, kind))
    return place_in_frame(whole, preprocess, down=down, right=right)


def _fit(expected: NDArray[np.float32], got: NDArray[np.float32]) -> str | None:
    """Describe another mean and deviation: the same factor and shift for all values of a channel."""
    texts, left, total = [], 0.0, 0.0
    for channel in range(expected.shape[1]):
        x, y = expected[:, channel].ravel().astype(np.float64), got[:, channel].ravel().astype(np.float64)
        spread = float(np.var(x))
        if spread == 0:
            return None
        factor = float(np.mean((x - x.mean()) * (y - y.mean()))) / spread
        shift = float(y.mean() - factor * x.mean())
        left += float(np.square(y - factor * x - shift).sum())
        total += float(np.square(y - x).sum())
        texts.append(f"{factor:.4g} x {shift:+.4g}")
    if total == 0 or left > 1e-3 * total:
        return None
    return f"another mean or deviation: channels are {', '.join(texts)} of what they should be"
