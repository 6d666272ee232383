"""Preprocessing has one definition, whose numbers are these."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgeattn.data import Preprocess, normalize_pixels, preprocess_image, resize_and_crop
from edgeattn.data.preprocess import resized_size
from edgeattn.errors import DataError

IMAGENET = Preprocess(size=224, resize=256)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(256, 256, (256, 256)), (500, 375, (341, 256)), (375, 500, (256, 341)), (30, 1000, (256, 8533))],
)
def test_short_side_is_resized_and_long_side_rounded_down(
    width: int, height: int, expected: tuple[int, int]
) -> None:
    assert resized_size(width, height, IMAGENET) == expected


def test_resize_then_crop_is_pillows() -> None:
    rgb = noise(375, 500)
    expected = Image.fromarray(rgb).resize((341, 256), Image.Resampling.BILINEAR)
    # (341 - 224) / 2 = 58.5 rounds to even, as torchvision's CenterCrop does
    expected = expected.crop((58, 16, 58 + 224, 16 + 224))
    np.testing.assert_array_equal(resize_and_crop(rgb, IMAGENET), np.asarray(expected))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_without_resize_the_whole_image_is_squashed(interpolation: str) -> None:
    rgb = noise(40, 90)
    preprocess = Preprocess(size=32, interpolation=interpolation)
    expected = Image.fromarray(rgb).resize((32, 32), Image.Resampling[interpolation.upper()])
    np.testing.assert_array_equal(resize_and_crop(rgb, preprocess), np.asarray(expected))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_horizontal_pass_comes_first_whatever_pillow_does(interpolation: str) -> None:
    """Pillow 13 begins with the vertical pass here; the result must not depend on Pillow's version."""
    rgb, resampling = noise(100, 55), Image.Resampling[interpolation.upper()]
    narrowed = np.asarray(Image.fromarray(rgb).resize((57, 100), resampling))
    expected = np.asarray(Image.fromarray(narrowed).resize((57, 57), resampling))
    preprocess = Preprocess(size=57, interpolation=interpolation)
    np.testing.assert_array_equal(resize_and_crop(rgb, preprocess), expected)


def test_normalization_in_float32() -> None:
    rgb = noise(224, 224)
    expected = (rgb / 255.0 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    result = preprocess_image(rgb, Preprocess(size=224))
    assert result.shape == (3, 224, 224)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), atol=1e-6)


def test_a_batch_is_normalized_like_each_image() -> None:
    batch = np.stack([noise(16, 16), noise(16, 16)[::-1]])
    whole = normalize_pixels(batch, IMAGENET)
    assert whole.shape == (2, 3, 16, 16)
    for index in range(2):
        np.testing.assert_array_equal(whole[index], normalize_pixels(batch[index], IMAGENET))


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)]
)
def test_other_arrays_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(DataError, match="Expected 8-bit RGB"):
        preprocess_image(wrong, IMAGENET)


def test_an_elongated_image_cannot_fill_the_memory() -> None:
    strip = np.zeros((8, 100_000, 3), np.uint8)
    with pytest.raises(DataError, match="too elongated"):
        preprocess_image(strip, IMAGENET)
