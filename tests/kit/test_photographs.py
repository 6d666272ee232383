"""A kit's photographs: small files as they are, everything else as a small PNG of the same picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeattn.data.image_set import FileSource, ImageSet
from edgeattn.data.images import load_image
from edgeattn.kit.photographs import LARGEST_BYTES, pick_images, take_photograph


def saved(path: Path, height: int, width: int, seed: int = 0, **options: object) -> Path:
    """Save noise, which no format compresses."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def set_of(paths: Sequence[Path], labels: Sequence[int] | None = None) -> ImageSet:
    return ImageSet(FileSource(tuple(paths)), [path.name for path in paths], labels or [0] * len(paths))


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_small_file_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path / name, 60, 80)
    taken = take_photograph(set_of([path]), 0)
    assert (taken.suffix, taken.data) == (path.suffix, path.read_bytes())
    np.testing.assert_array_equal(taken.rgb, load_image(path))


@pytest.mark.parametrize(("height", "width"), [(1500, 2000), (700, 700), (20, 40_000)])
def test_a_large_file_becomes_a_small_copy_that_says_what_its_pixels_are(
    height: int, width: int, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.jpg", height, width, quality=95)
    assert path.stat().st_size > LARGEST_BYTES
    taken = take_photograph(set_of([path]), 0)
    assert taken.suffix == ".png"
    assert len(taken.data) <= LARGEST_BYTES
    with Image.open(io.BytesIO(taken.data)) as image:
        np.testing.assert_array_equal(np.array(image), taken.rgb)
    assert (
        taken.rgb.shape[0] * width / height == pytest.approx(taken.rgb.shape[1], rel=0.1)
        or min(taken.rgb.shape[:2]) == 8
    )


def test_a_small_file_that_decodes_to_much_becomes_a_small_copy(tmp_path: Path) -> None:
    """A turned JPEG is stored upright, as a PNG, which takes far more room."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.jpg", 900, 700, quality=30, exif=exif)
    assert path.stat().st_size < LARGEST_BYTES
    taken = take_photograph(set_of([path]), 0)
    assert len(taken.data) <= LARGEST_BYTES
    assert taken.rgb.shape[1] > taken.rgb.shape[0], "upright"


def test_classes_take_turns_and_large_files_are_taken_only_where_there_are_no_small_ones(
    tmp_path: Path,
) -> None:
    paths = [
        saved(tmp_path / "0-large.png", 500, 500),
        saved(tmp_path / "0-small.png", 20, 20),
        saved(tmp_path / "1-large.png", 500, 500),
        saved(tmp_path / "2-small.png", 20, 20),
        saved(tmp_path / "2-other.png", 20, 20),
    ]
    images = set_of(paths, [0, 0, 1, 2, 2])
    assert pick_images(images, 6) == [1, 2, 3, 4]
    assert pick_images(images, 3) == [1, 2, 3]
