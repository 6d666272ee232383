"""Inputs bit by bit: what another preprocessing does is named, on real photographs where there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeattn.data import ImageSet, Preprocess, load_image, materialize, preprocess_image
from edgeattn.data.model_input import ModelInput
from edgeattn.errors import DataError
from edgeattn.measure.preprocessing import compare_inputs

PREPROCESS = Preprocess(size=64, resize=72)


def drawn(count: int = 2) -> list[NDArray[np.uint8]]:
    """Return pictures with edges and colours."""
    random, images = np.random.default_rng(0), []
    for index in range(count):
        y, x = np.mgrid[0 : 150 + 10 * index, 0:200]
        waves = [np.sin(x / random.uniform(2, 9)) + np.cos(y / random.uniform(2, 9)) + c for c in range(3)]
        images.append(np.clip(60 * np.stack(waves, -1) + 60, 0, 255).astype(np.uint8))
    return images


def inputs(images: list[NDArray[np.uint8]], **changes: object) -> NDArray[np.float32]:
    changed = PREPROCESS.model_copy(update=changes)
    return np.stack([preprocess_image(image, changed) for image in images])


CASES = {
    "equal": lambda images: inputs(images),
    "channel-order": lambda images: inputs([np.ascontiguousarray(image[..., ::-1]) for image in images]),
    "resize": lambda images: inputs(images, interpolation="bicubic"),
    "resize-nearest": lambda images: inputs(images, interpolation="nearest"),
    "resize-squashed": lambda images: inputs(images, resize=None),
    "resize-no-margin": lambda images: inputs(images, resize=64),
    "normalization": lambda images: inputs(images, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "normalization-bytes": lambda images: inputs(images, mean=(0, 0, 0), std=(1, 1, 1)) * np.float32(255),
    "unexplained": lambda images: inputs(images[::-1]) if len(images) > 1 else inputs(images) * 0,
}


@pytest.mark.parametrize("case", CASES)
def test_the_difference_is_named(case: str) -> None:
    images = drawn()
    found = compare_inputs(images, PREPROCESS, CASES[case](images))
    wanted = next(
        cause
        for cause in ("equal", "channel-order", "resize", "normalization", "unexplained")
        if case.startswith(cause)
    )
    assert found.cause == wanted, found.evidence
    assert found.is_error == (case != "equal")


FRAME = ModelInput(height=48, width=80)
OTHER_FRAMES = {
    "equal": {},
    "channel-order": {"channels": "bgr"},
    "resize: stretching instead of cropping": {"fit": "stretch"},
    "resize: letterboxing instead of cropping": {"fit": "letterbox"},
    "resize: cropping without a margin": {"crop_pct": 1.0},
    "normalization": {"mean": (0.0,), "std": (1.0,)},
}


@pytest.mark.parametrize("case", OTHER_FRAMES)
def test_the_difference_is_named_in_any_frame(case: str) -> None:
    images, changed = drawn(), FRAME.model_copy(update=OTHER_FRAMES[case])
    got = np.stack([preprocess_image(image, changed) for image in images])
    found = compare_inputs(images, FRAME, got)
    cause, _, text = case.partition(": ")
    assert found.cause == cause, found.evidence
    assert text in found.evidence


def test_the_difference_is_named_with_channels_last() -> None:
    images, last = drawn(), FRAME.model_copy(update={"layout": "nhwc"})
    changed = last.model_copy(update={"channels": "bgr"})
    got = np.stack([preprocess_image(image, changed) for image in images])
    assert compare_inputs(images, last, got).cause == "channel-order"
    assert compare_inputs(images, changed, got).cause == "equal"


def test_a_crop_one_pixel_off_is_named() -> None:
    images = drawn()
    wide = PREPROCESS.model_copy(update={"size": 66})
    moved = np.stack([preprocess_image(image, wide) for image in images])[:, :, 2:, 1:-1]
    found = compare_inputs(images, PREPROCESS, np.ascontiguousarray(moved))
    assert found.cause == "crop"
    assert "+1 pixels down and +0" in found.evidence


def test_one_level_of_a_pixel_is_rounding() -> None:
    images = drawn()
    got = inputs(images)
    got[:, 0, ::7] += np.float32(1 / 255 / PREPROCESS.std[0])
    assert compare_inputs(images, PREPROCESS, got).cause == "rounding"


def test_shapes_are_checked() -> None:
    with pytest.raises(DataError, match="expected float32"):
        compare_inputs(drawn(), PREPROCESS, np.zeros((1, 3, 64, 64), np.float32))
    with pytest.raises(DataError, match="no images"):
        compare_inputs([], PREPROCESS, np.zeros((0, 3, 64, 64), np.float32))


def photographs(folder: Path, count: int) -> list[NDArray[np.uint8]]:
    return [load_image(path) for path in sorted((folder / "imagenet-samples").glob("*.jpg"))[:count]]


@pytest.mark.parametrize("preprocess", [Preprocess(size=192, resize=219), Preprocess(size=160)])
def test_training_calibration_and_measurement_see_equal_bits(
    preprocess: Preprocess, data_folder: Path
) -> None:
    """On photographs of many sizes; without augmentation, training sees the images of evaluation."""
    pytest.importorskip("torch")
    from edgeattn.data import Augmentation, load_pixels
    from edgeattn.train.loader import EpochLoader

    paths = sorted((data_folder / "imagenet-samples").glob("*.jpg"))[:8]
    images = [load_image(path) for path in paths]
    assert len({image.shape for image in images}) > 1
    from edgeattn.data.image_set import FileSource

    files = ImageSet(FileSource(tuple(paths)), [path.name for path in paths], range(len(paths)))
    calibrated = materialize(files, preprocess)
    pixels = load_pixels(files, preprocess)
    loader = EpochLoader(
        pixels, files.labels, preprocess=preprocess, augmentation=Augmentation(), batch_size=8, seed=0
    )
    ((batch, labels),) = loader.epoch(0)
    trained = np.empty_like(calibrated)
    trained[labels.numpy()] = batch.numpy()
    for got in (calibrated, trained):
        assert compare_inputs(images, preprocess, got).cause == "equal"


def test_a_photograph_resized_otherwise_is_caught(data_folder: Path) -> None:
    images = photographs(data_folder, 2)
    # Their short sides are 256 already, which a recipe with resize 256 would leave as they are.
    preprocess = Preprocess(size=160, resize=183)
    other = preprocess.model_copy(update={"interpolation": "bicubic"})
    got = np.stack([preprocess_image(image, other) for image in images])
    assert compare_inputs(images, preprocess, got).cause == "resize"
