"""Calibration sets: which images set the ranges of a quantized network.

A manifest (one YAML file) names the images; a calibration set is their tensors. A folder of images
or an ``.npy`` file serves as well, for networks that come without a data set.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from edgeattn.data.datasets import folder_images, load_dataset
from edgeattn.data.image_set import DataSplits, ImageSet
from edgeattn.data.model_input import Preparation
from edgeattn.data.pixels import Progress, materialize
from edgeattn.data.spec import DataSpec
from edgeattn.data.splits import select_balanced
from edgeattn.errors import DataError

__all__ = [
    "MIN_CALIBRATION_IMAGES",
    "CalibrationManifest",
    "CalibrationSet",
    "load_calibration",
    "load_manifest",
    "spread",
    "select_calibration_images",
]

# Fewer images leave the ranges of rarely active channels to chance.
MIN_CALIBRATION_IMAGES = 16
# Ranges settle after a few hundred images; a whole data set is a mistake that costs memory and time.
_MOST_CALIBRATION_IMAGES = 2048
_LARGEST_MANIFEST_BYTES = 1 << 20


class CalibrationManifest(BaseModel):
    """Names calibration images, so that they can be found again elsewhere.

    Images are drawn from one split of a data set: `count` of them, balanced over the classes by
    `seed`, or those at `indices`. The preprocessing is the network's, so it is not part of this.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=100)]
    data: Annotated[
        DataSpec | None,
        Field(
            description="Data set and division, without preprocess and augmentation. null: the recipe's. "
            "A relative root starts from the manifest's folder."
        ),
    ] = None
    split: Annotated[
        Literal["train", "validation"],
        Field(description="validation only for data that is not measured on: the overlap is refused."),
    ] = "train"
    count: Annotated[
        int | None,
        Field(ge=MIN_CALIBRATION_IMAGES, le=_MOST_CALIBRATION_IMAGES, description="Number of images."),
    ] = None
    seed: Annotated[int, Field(ge=0, description="Of the choice among the split's images.")] = 0
    indices: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...] | None,
        Field(
            min_length=MIN_CALIBRATION_IMAGES,
            max_length=_MOST_CALIBRATION_IMAGES,
            description="Explicit positions in the split, instead of count and seed.",
        ),
    ] = None
    sha256: Annotated[
        str | None,
        Field(
            pattern="^[0-9a-f]{64}$",
            description="Over the chosen images' names, labels and contents; other content is refused.",
        ),
    ] = None

    @field_validator("data")
    @classmethod
    def _only_the_division(cls, value: DataSpec | None) -> DataSpec | None:
        extra = value.model_fields_set & {"preprocess", "augmentation"} if value is not None else set()
        if extra:
            raise ValueError(f"{', '.join(sorted(extra))} cannot be set here: calibration uses the recipe's")
        return value

    @field_validator("indices")
    @classmethod
    def _distinct(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("indices must be distinct")
        return value

    def model_post_init(self, context: Any, /) -> None:
        """Check that the choice is given exactly once."""
        if (self.count is None) == (self.indices is None):
            raise ValueError("give either count or indices")


@dataclasses.dataclass(frozen=True)
class CalibrationSet:
    """Calibration images as network inputs.

    Attributes:
        name: The manifest's name, or the folder's or file's.
        tensors: float32 of shape (count, channels, height, width).
        ids: Name of each image.
        manifest: What named the images; None for a plain folder or array.
        digests: SHA-256 of each image's file; none for an array.
    """

    name: str
    tensors: NDArray[np.float32]
    ids: tuple[str, ...]
    manifest: CalibrationManifest | None = None
    digests: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tensors)

    def batches(self, batch_size: int = 1) -> Iterator[NDArray[np.float32]]:
        """Yield the tensors in order, each batch of shape (<= batch_size, channels, height, width)."""
        for start in range(0, len(self.tensors), batch_size):
            yield self.tensors[start : start + batch_size]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ids, the shape and the tensors' bytes."""
        digest = hashlib.sha256(repr((self.ids, self.tensors.shape)).encode(errors="surrogateescape"))
        for tensor in self.tensors:
            digest.update(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
        return digest.hexdigest()


def load_manifest(path: Path) -> CalibrationManifest:
    """Read and validate a manifest.

    Raises:
        DataError: If the file is missing, is not YAML, or a field is wrong; the message names it.
    """
    try:
        if path.stat().st_size > _LARGEST_MANIFEST_BYTES:
            raise DataError(f"{path} is larger than 1 MiB, so not a calibration manifest. Name a manifest.")
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise DataError(
            f"Calibration manifest {path} cannot be read: {exc.strerror}. Check the path."
        ) from exc
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as exc:
        raise DataError(f"Calibration manifest {path} is not valid YAML: {exc}. Correct it.") from exc
    if not isinstance(value, dict):
        raise DataError(
            f"Calibration manifest {path} must be a mapping with name, data and count, "
            f"got {type(value).__name__}. See calibration/digits.yaml."
        )
    try:
        return CalibrationManifest.model_validate(value)
    except ValidationError as exc:
        problems = "; ".join(
            f"{'.'.join(map(str, error['loc'])) or 'manifest'}: {error['msg']}" for error in exc.errors()
        )
        raise DataError(
            f"Calibration manifest {path} is not valid: {problems}. Correct these fields."
        ) from exc


def load_calibration(
    source: Path | CalibrationManifest,
    data: DataSplits | None = None,
    preprocess: Preparation | None = None,
    base_dir: Path | None = None,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> CalibrationSet:
    """Load calibration images as network inputs.

    Args:
        source: A manifest or its ``.yaml`` file; an ``.npy`` file of float32 NCHW, used as it is; or
            a folder of images (directly in it, or in class folders).
        data: The run's splits. A manifest without `data` draws from them; with any manifest, its
            images must not be among those of ``data.validation``.
        preprocess: The network's; needed for everything but an ``.npy`` file.
        base_dir: Folder that a relative root starts from; by default the manifest file's.
        limit: Take at most so many of a folder's or an array's images, spread evenly over it.
        progress: Called with (done, total) while decoding.

    Raises:
        DataError: If there are fewer than 16 images, their content is not what the manifest recorded,
            they overlap with what is measured, or they cannot be read; or if there is a limit for a manifest.
    """
    is_manifest = isinstance(source, CalibrationManifest) or source.suffix.lower() in (".yaml", ".yml")
    if limit is not None and is_manifest:
        raise DataError(
            "A calibration manifest says by itself how many images it names: leave out the limit, or change its count."
        )
    if isinstance(source, CalibrationManifest):
        return _from_manifest(source, data, _needed(preprocess), base_dir or Path(), progress)
    suffix = source.suffix.lower()
    if source.is_dir():
        return _from_folder(source, _needed(preprocess), limit, progress)
    if suffix == ".npy":
        return _from_npy(source, limit)
    if suffix in (".yaml", ".yml"):
        manifest = load_manifest(source)
        return _from_manifest(manifest, data, _needed(preprocess), base_dir or source.parent, progress)
    reason = "is not one of these" if source.exists() else "does not exist"
    raise DataError(
        f"Calibration source {source} {reason}: expected a manifest (.yaml), an .npy file of float32 NCHW, "
        "or a folder of images."
    )


def select_calibration_images(
    manifest: CalibrationManifest, data: DataSplits | None = None, base_dir: Path | None = None
) -> ImageSet:
    """Return the images that a manifest names, in its order, without decoding them.

    Raises:
        DataError: As `load_calibration`, but for images that cannot be decoded.
    """
    splits = _splits_of(manifest, data, base_dir or Path())
    pool = splits.train if manifest.split == "train" else splits.validation
    if manifest.indices is not None:
        if max(manifest.indices) >= len(pool):
            raise DataError(
                f"Calibration manifest {manifest.name!r} names index {max(manifest.indices)} of the "
                f"{manifest.split} split, which has {len(pool)} images. Correct indices."
            )
        chosen = pool.subset(manifest.indices)
    else:
        count = manifest.count or 0
        if count > len(pool):
            raise DataError(
                f"Calibration manifest {manifest.name!r} asks for {count} images of the {manifest.split} "
                f"split, which has {len(pool)}. Lower count, or change data.validation_share."
            )
        chosen = pool.subset(select_balanced(pool.labels, count, manifest.seed))
    if manifest.sha256 is not None and chosen.fingerprint != manifest.sha256:
        raise DataError(
            f"Calibration manifest {manifest.name!r} recorded other images: their SHA-256 is "
            f"{chosen.fingerprint}, {manifest.sha256} was recorded. Restore the data, or record the new "
            "value if the change is meant."
        )
    if data is not None:
        _check_disjoint(manifest, chosen, data.validation)
    return chosen


def _splits_of(manifest: CalibrationManifest, data: DataSplits | None, base_dir: Path) -> DataSplits:
    if manifest.data is not None:
        return load_dataset(manifest.data, base_dir)
    if data is None:
        raise DataError(
            f"Calibration manifest {manifest.name!r} has no data field and no data set was given. "
            "Add data: with kind and root."
        )
    return data


def _check_disjoint(manifest: CalibrationManifest, chosen: ImageSet, measured: ImageSet) -> None:
    # Name and content together: equal pictures under two names are the data set's own repetition.
    candidates = set(chosen.ids) & set(measured.ids)
    where = [index for index, name in enumerate(measured.ids) if name in candidates]
    shared = {*zip(chosen.ids, chosen.digests, strict=True)} & {
        *zip([measured.ids[index] for index in where], measured.subset(where).digests, strict=True)
    }
    if shared:
        raise DataError(
            f"Calibration manifest {manifest.name!r} shares {len(shared)} images with the validation split, "
            f"such as {min(shared)[0]!r}. Give both the same validation_share, split_seed and "
            "group_near_duplicates, and draw from split: train."
        )


def _needed(preprocess: Preparation | None) -> Preparation:
    if preprocess is None:
        raise DataError(
            "Calibration images need the network's preprocessing (size, mean, std). Give it, or give an "
            ".npy file of inputs that are already preprocessed."
        )
    return preprocess


def _from_manifest(
    manifest: CalibrationManifest,
    data: DataSplits | None,
    preprocess: Preparation,
    base_dir: Path,
    progress: Progress | None,
) -> CalibrationSet:
    images = select_calibration_images(manifest, data, base_dir)
    tensors = materialize(images, preprocess, progress=progress)
    return CalibrationSet(manifest.name, tensors, images.ids, manifest, images.digests)


def _from_folder(
    folder: Path, preprocess: Preparation, limit: int | None, progress: Progress | None
) -> CalibrationSet:
    images = folder_images(folder)
    images = images.subset(spread(len(images), limit))
    _check_count(len(images), f"Folder {folder}")
    tensors = materialize(images, preprocess, progress=progress)
    return CalibrationSet(folder.name, tensors, images.ids, digests=images.digests)


def _from_npy(path: Path, limit: int | None) -> CalibrationSet:
    try:
        # Mapped, so that a header that promises more than the file holds allocates nothing; and not
        # by numpy.load, which also opens zip archives and pickles.
        mapped = np.lib.format.open_memmap(path, mode="r")
    except OSError as exc:
        raise DataError(f"Calibration array {path} cannot be read: {exc}. Check the path.") from exc
    except ValueError as exc:
        raise DataError(
            f"Calibration array {path} is not a plain .npy file: {exc}. Write it with numpy.save."
        ) from exc
    if mapped.dtype != np.float32 or mapped.ndim != 4:
        raise DataError(
            f"Calibration array {path} must be float32 of shape (count, channels, height, width), got "
            f"{mapped.dtype} {mapped.shape}. Convert it with astype('float32')."
        )
    chosen = spread(len(mapped), limit)
    _check_count(len(chosen), f"Calibration array {path}")
    tensors = np.array(mapped if len(chosen) == len(mapped) else mapped[chosen], dtype=np.float32, order="C")
    if not tensors.size or not np.isfinite(tensors).all():
        raise DataError(
            f"Calibration array {path} is empty or holds values that are not finite (NaN or infinity). "
            "Write real network inputs."
        )
    return CalibrationSet(path.stem, tensors, tuple(map(str, chosen)))


def spread(count: int, limit: int | None) -> list[int]:
    """Return at most `limit` of `count` places, in order, evenly spread with both ends; None takes all."""
    return sorted(
        {int(place) for place in np.linspace(0, count - 1, count if limit is None else min(count, limit))}
    )


def _check_count(count: int, what: str) -> None:
    if not MIN_CALIBRATION_IMAGES <= count <= _MOST_CALIBRATION_IMAGES:
        way = " A limit takes so many, spread evenly." if count > _MOST_CALIBRATION_IMAGES else ""
        raise DataError(
            f"{what} holds {count} images; calibration needs from {MIN_CALIBRATION_IMAGES} to "
            f"{_MOST_CALIBRATION_IMAGES}. Around 200 varied ones are a good choice.{way}"
        )
