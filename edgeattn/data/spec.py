"""What data a run uses and how an image becomes a tensor: plain values, no framework.

The preprocessing is data: training, calibration, measurement and every deploy kit read the same
`Preprocess`, so they cannot differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["Augmentation", "DataSpec", "Preprocess"]

_FROZEN = ConfigDict(extra="forbid", frozen=True)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LARGEST_SIZE = 1024
"""Of a recipe's and a kit's images, in pixels a side."""


class Preprocess(BaseModel):
    """From a decoded 8-bit RGB image to a float32 NCHW tensor.

    The image is resized, cropped around its centre, scaled to [0, 1], and normalized by channel.
    """

    model_config = _FROZEN

    size: Annotated[
        int, Field(ge=8, le=LARGEST_SIZE, description="Height and width of the tensor in pixels.")
    ] = 224
    resize: Annotated[
        int | None,
        Field(ge=8, le=2048, description="Short side after resizing; null squashes to size x size."),
    ] = None
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @field_validator("std")
    @classmethod
    def _std_positive(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0:
            raise ValueError(f"std must be positive, got {value}")
        return value

    @model_validator(mode="after")
    def _resize_covers_crop(self) -> Preprocess:
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize ({self.resize}) must be at least size ({self.size})")
        return self


class Augmentation(BaseModel):
    """Random changes to training images, before normalization."""

    model_config = _FROZEN

    crop_scale: Annotated[
        tuple[float, float], Field(description="Random resized crop: share of the area kept, [low, high].")
    ] = (1.0, 1.0)
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    translate: Annotated[float, Field(ge=0, le=0.5, description="Largest shift as a share of the side.")] = (
        0.0
    )
    horizontal_flip: bool = False
    color_jitter: Annotated[float, Field(ge=0, le=1, description="Brightness, contrast and saturation.")] = (
        0.0
    )
    random_erase: Annotated[float, Field(ge=0, le=1, description="Probability of blanking a rectangle.")] = (
        0.0
    )


class DataSpec(BaseModel):
    """A data set, its splits and its preprocessing."""

    model_config = _FROZEN

    kind: Annotated[
        Literal["digits", "image_folder", "labelled_files"],
        Field(
            description="digits: scikit-learn's handwritten digits. image_folder: ROOT/<class>/*.jpg, or "
            "ROOT/train and ROOT/val of that form. labelled_files: ROOT/*.jpg and ROOT/labels.csv."
        ),
    ]
    root: Annotated[
        Path | None,
        Field(description="Folder of the images; relative to the recipe, environment variables expanded."),
    ] = None
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    split_seed: int = 0
    group_near_duplicates: Annotated[
        bool, Field(description="Keep near-identical images on the same side of the split.")
    ] = False
    preprocess: Preprocess = Preprocess()
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _root_where_needed(self) -> DataSpec:
        if self.kind != "digits" and self.root is None:
            raise ValueError(f"data.kind {self.kind!r} needs data.root, the folder of the images")
        return self
