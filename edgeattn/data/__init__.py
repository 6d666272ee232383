"""Data sets, preprocessing and calibration sets; `edgeattn.data.loader` alone needs torch."""

from __future__ import annotations

from edgeattn.data.calibration import (
    CalibrationManifest,
    CalibrationSet,
    load_calibration,
    load_manifest,
)
from edgeattn.data.datasets import load_dataset
from edgeattn.data.image_set import DataSplits, ImageSet, check_images
from edgeattn.data.images import check_image, load_image
from edgeattn.data.pixels import iterate_batches, load_pixels, materialize, training_geometry
from edgeattn.data.preprocess import normalize_pixels, preprocess_image, resize_and_crop
from edgeattn.data.spec import Augmentation, DataSpec, Preprocess

__all__ = [
    "Augmentation",
    "CalibrationManifest",
    "CalibrationSet",
    "DataSpec",
    "DataSplits",
    "ImageSet",
    "Preprocess",
    "check_image",
    "check_images",
    "iterate_batches",
    "load_calibration",
    "load_dataset",
    "load_image",
    "load_manifest",
    "load_pixels",
    "materialize",
    "normalize_pixels",
    "preprocess_image",
    "resize_and_crop",
    "training_geometry",
]
