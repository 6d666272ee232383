"""How images become the input of a network that comes without a recipe: its size, and what its values mean.

An ONNX file says how large its image is, but not how pixels become values, nor what becomes of photographs of other
proportions. `guess_normalization` reads what the file does say; the rest is the user's.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgeattn.data.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from edgeattn.errors import ModelError, RecipeError

__all__ = [
    "NORMALIZATIONS",
    "Fit",
    "ImageOptions",
    "ModelInput",
    "Preparation",
    "guess_normalization",
    "model_input",
    "parse_normalization",
]

Fit = Literal["crop", "stretch", "letterbox"]

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "unit": ((0.0,), (1.0,)),
    "symmetric": ((0.5,), (0.5,)),
    "pixels": ((0.0,), (1 / 255,)),
}
"""Name -> (mean, standard deviation) of pixels scaled to [0, 1]; values are 0 to 1, -1 to 1, 0 to 255 but for the first."""

_LARGEST_SIDE = 4096
_LEAST_SIDE = 8
_LIKE_NORMALIZED = (0.9, 3.2)
"""A network computes with values that span at least the first and reach no farther from 0 than the second."""


class ModelInput(BaseModel):
    """From a decoded 8-bit RGB image to the float32 tensor that a model takes.

    The image is fitted to the frame on 8-bit pixels, scaled to [0, 1], and normalized by channel.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    height: Annotated[int, Field(ge=_LEAST_SIDE, le=_LARGEST_SIDE)]
    width: Annotated[int, Field(ge=_LEAST_SIDE, le=_LARGEST_SIDE)]
    channels: Annotated[
        Literal["rgb", "bgr", "gray"], Field(description="Order of the channels; gray is ITU-R 601 luma.")
    ] = "rgb"
    layout: Annotated[
        Literal["nchw", "nhwc"],
        Field(description="Of the tensor; nhwc is how TensorFlow's models are exported."),
    ] = "nchw"
    fit: Annotated[
        Fit,
        Field(
            description="crop: cover the frame, keep its centre. stretch: no heed of proportions. letterbox: all of the "
            "image, borders of grey 114 around it."
        ),
    ] = "crop"
    crop_pct: Annotated[
        float, Field(gt=0, le=1, description="Crops: share of the covering image's side that is kept.")
    ] = 0.875
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)] = IMAGENET_MEAN
    std: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)] = IMAGENET_STD

    @model_validator(mode="after")
    def _plausible(self) -> ModelInput:
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        for values in (self.mean, self.std):
            if len(values) not in (1, self.depth):
                raise ValueError(
                    f"mean and std are one number, or one for each of {self.depth} channels; got {values}"
                )
        return self

    @property
    def depth(self) -> int:
        """Number of channels."""
        return 1 if self.channels == "gray" else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's tensor."""
        if self.layout == "nhwc":
            return self.height, self.width, self.depth
        return self.depth, self.height, self.width

    @property
    def normalization(self) -> str:
        """Name of the normalization, or its numbers ``MEAN/STD``."""
        for name, parts in NORMALIZATIONS.items():
            if all(map(self._same, parts, (self.mean, self.std))):
                return name
        return "/".join(",".join(f"{value:g}" for value in part) for part in (self.mean, self.std))

    def _same(self, one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return len(one) in (1, self.depth) and bool(
            np.array_equal(np.broadcast_to(one, self.depth), np.broadcast_to(other, self.depth))
        )

    def describe(self) -> str:
        """Say in a few words what becomes of an image."""
        values = {
            "imagenet": "normalized as for ImageNet",
            "unit": "values of 0 to 1",
            "symmetric": "values of -1 to 1",
            "pixels": "pixels of 0 to 255",
        }.get(self.normalization, f"mean/std {self.normalization}")
        fitted = {"crop": "cropped", "stretch": "stretched", "letterbox": "letterboxed"}[self.fit]
        colours = self.channels if self.channels == "gray" else self.channels.upper()
        last = ", channels last" if self.layout == "nhwc" else ""
        return f"{colours}, {fitted} to {self.height} x {self.width}, {values}{last}"


Preparation: TypeAlias = Preprocess | ModelInput
"""How images become inputs: as a recipe says, or as a model that comes without one wants them."""


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """What a user says of a model's images; None leaves a choice to what the model tells.

    Attributes:
        normalization: A key of `NORMALIZATIONS`, or numbers ``MEAN/STD`` as `parse_normalization` takes them.
        fit: What becomes of images of other proportions.
        bgr: Blue first, as OpenCV's users train.
    """

    normalization: str | None = None
    fit: Fit | None = None
    bgr: bool | None = None


def model_input(
    shape: tuple[int, ...],
    options: ImageOptions | None = None,
    guess: ImageOptions | None = None,
    recorded: ModelInput | None = None,
) -> ModelInput:
    """Return how images become a model's input.

    Args:
        shape: Of the input: (1, 3, H, W), or (1, 1, H, W) for gray images; or channels last.
        options: What the user says.
        guess: What the model tells; where that is nothing, images are cropped and normalized as for ImageNet, gray
            ones to values of 0 to 1.
        recorded: What an earlier command used for this model; it comes before `guess`.

    Raises:
        ModelError: If images do not fit the shape.
        RecipeError: If the options do not fit together.
    """
    options, guess = options or ImageOptions(), guess or ImageOptions()
    layout = _layout_of(shape)
    if layout is None:
        raise ModelError(
            f"The model's input has shape {shape}, which images do not fit: expected (1, 3, height, width), or "
            f"(1, 1, height, width) for gray ones. {_AS_ARRAY.format(rest=', '.join(map(str, shape[1:])))}."
        )
    depth, height, width = shape[1:] if layout == "nchw" else (shape[3], *shape[1:3])
    if not all(_LEAST_SIDE <= side <= _LARGEST_SIDE for side in (height, width)):
        raise ModelError(
            f"The model's input has shape {shape}; images are made for sides of {_LEAST_SIDE} to {_LARGEST_SIDE}. "
            f"{_AS_ARRAY.format(rest=', '.join(map(str, shape[1:])))}."
        )
    gray = depth == 1
    if gray and options.bgr:
        raise RecipeError(
            "The model takes gray images, in which there is no order of channels: leave out bgr."
        )
    if recorded is not None and recorded.shape == tuple(shape[1:]):
        start = recorded
    else:
        mean, std = NORMALIZATIONS[guess.normalization or ("unit" if gray else "imagenet")]
        start = ModelInput(
            height=height,
            width=width,
            channels="gray" if gray else "rgb",
            layout=layout,
            fit=guess.fit or "crop",
            mean=mean,
            std=std,
        )
    changes: dict[str, object] = {}
    if options.normalization is not None:
        changes["mean"], changes["std"] = parse_normalization(options.normalization, depth)
    if options.fit is not None:
        changes["fit"] = options.fit
    if options.bgr is not None and not gray:
        changes["channels"] = "bgr" if options.bgr else "rgb"
    return start.model_copy(update=changes)


def parse_normalization(text: str, depth: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation, of pixels scaled to [0, 1].

    Args:
        text: A key of `NORMALIZATIONS`, or ``MEAN/STD``, each one number or as many as there are channels:
            ``0.5/0.25``, ``0.485,0.456,0.406/0.229,0.224,0.225``.
        depth: Number of channels.

    Raises:
        RecipeError: If it is neither.
    """
    expected = (
        f"expected {', '.join(NORMALIZATIONS)}, or MEAN/STD such as 0.5/0.25, of pixels scaled to 0 to 1"
    )
    if text in NORMALIZATIONS:
        mean, std = NORMALIZATIONS[text]
    else:
        parts = text.split("/")
        try:
            mean, std = (tuple(float(value) for value in part.split(",")) for part in parts)
        except ValueError:
            raise RecipeError(f"{text!r} is no normalization; {expected}.") from None
    if not all(len(part) in (1, depth) and np.isfinite(part).all() for part in (mean, std)) or min(std) <= 0:
        raise RecipeError(
            f"{text!r} does not normalize {depth} channels; {expected}, one number or one for each channel, each STD "
            "above 0."
        )
    return mean, std


def guess_normalization(factor: float, shift: float) -> str | None:
    """Return which values a model wants that computes ``factor * image + shift`` before its first layer.

    Pixels are wanted where that makes normalized values of them, else values of 0 to 1 where it does so of those, else
    values of -1 to 1; and pixels where it takes a mean from them that only pixels have. None where it tells nothing.
    """
    least, farthest = _LIKE_NORMALIZED
    for name, (low, high) in {"pixels": (0, 255), "unit": (0, 1), "symmetric": (-1, 1)}.items():
        ends = sorted((factor * low + shift, factor * high + shift))
        if ends[1] - ends[0] >= least and max(map(abs, ends)) <= farthest:
            return name
    # Some take pixels less their mean, and scale them in their first layer.
    return "pixels" if factor and 1 < -shift / factor <= 255 else None


_AS_ARRAY = "Give its inputs as an .npy file of float32, shape (images, {rest})"


def _layout_of(shape: tuple[int, ...]) -> Literal["nchw", "nhwc"] | None:
    if len(shape) != 4:
        return None
    if shape[1] in (1, 3):
        return "nchw"
    return "nhwc" if shape[3] in (1, 3) else None
