"""Decoded once, cached or not, the numbers are those of `preprocess_image`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeattn.data import (
    Augmentation,
    ImageSet,
    Preprocess,
    iterate_batches,
    load_pixels,
    materialize,
    preprocess_image,
    training_geometry,
)
from edgeattn.data.image_set import FileSource
from edgeattn.errors import ArtifactError, DataError

SMALL = Preprocess(size=16, resize=20)


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    rng = np.random.default_rng(0)
    paths = []
    for index in range(7):
        path = tmp_path / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (24 + index, 40, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return ImageSet(FileSource(tuple(paths)), [path.name for path in paths], range(7))


def test_every_way_to_an_input_is_equal_in_every_bit(images: ImageSet, tmp_path: Path) -> None:
    expected = np.stack([preprocess_image(image, SMALL) for image, _ in images])
    np.testing.assert_array_equal(materialize(images, SMALL), expected)
    for _ in range(2):  # written, then read
        np.testing.assert_array_equal(materialize(images, SMALL, cache_dir=tmp_path / "cache"), expected)
    batches = list(iterate_batches(images, SMALL, 3))
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([inputs for inputs, _ in batches]), expected)


def test_a_cached_set_is_not_decoded_again(images: ImageSet, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    for _ in range(2):
        load_pixels(
            images, SMALL, cache_dir=tmp_path, progress=lambda done, total: calls.append((done, total))
        )
    assert calls == [(index + 1, 7) for index in range(7)]


def test_other_content_geometry_or_order_is_another_cache(images: ImageSet, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load_pixels(images, SMALL, cache_dir=cache)
    load_pixels(images, SMALL.model_copy(update={"mean": (0.0, 0.0, 0.0)}), cache_dir=cache)
    assert len(list(cache.iterdir())) == 1
    load_pixels(images, Preprocess(size=16), cache_dir=cache)
    load_pixels(images.subset([1, 0]), SMALL, cache_dir=cache)
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"PK\x03\x04rubbish", b"\x80\x04rubbish"])
def test_a_damaged_cache_is_made_again(images: ImageSet, tmp_path: Path, damage: bytes) -> None:
    cache = tmp_path / "cache"
    expected = np.array(load_pixels(images, SMALL, cache_dir=cache))
    next(cache.iterdir()).write_bytes(damage)
    np.testing.assert_array_equal(load_pixels(images, SMALL, cache_dir=cache), expected)


def test_a_failed_pass_leaves_no_cache(images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "3.png").write_bytes(b"broken")
    (tmp_path / "5.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 7 images cannot be used") as caught:
        load_pixels(images, SMALL, cache_dir=tmp_path / "cache")
    assert "3.png" in str(caught.value)
    assert "5.png" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unwritable_cache_is_an_artifact_error(images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="Cannot write"):
        load_pixels(images, SMALL, cache_dir=tmp_path / "file" / "cache")


def test_an_elongated_image_is_named() -> None:
    strip = ImageSet.from_array(np.zeros((1, 8, 100_000, 3), np.uint8), [0])
    with pytest.raises(DataError, match="0: An image of 100000 x 8"):
        load_pixels(strip, Preprocess(size=224, resize=256))


def test_more_than_the_memory_is_refused_before_decoding() -> None:
    one = np.broadcast_to(np.zeros((1, 8, 8, 3), np.uint8), (60_000, 8, 8, 3))
    with pytest.raises(DataError, match=r"need 9\.0 GB of memory. Take fewer"):
        load_pixels(ImageSet.from_array(one, np.zeros(60_000, int)), Preprocess(size=224))


@pytest.mark.parametrize(
    ("preprocess", "augmentation", "size", "resize"),
    [
        (Preprocess(size=96), Augmentation(), 96, None),
        (Preprocess(size=96), Augmentation(horizontal_flip=True, color_jitter=0.2), 96, None),
        (Preprocess(size=100), Augmentation(rotate_degrees=5), 115, None),
        (Preprocess(size=224, resize=256), Augmentation(crop_scale=(0.5, 1.0)), 256, 256),
        (Preprocess(size=1024, resize=2048), Augmentation(translate=0.1), 1024, 2048),
    ],
)
def test_training_keeps_a_margin_only_where_it_moves_pixels(
    preprocess: Preprocess, augmentation: Augmentation, size: int, resize: int | None
) -> None:
    geometry = training_geometry(preprocess, augmentation)
    assert (geometry.size, geometry.resize) == (size, resize)


def test_subsets_keep_ids_labels_and_content(images: ImageSet) -> None:
    part = images.subset([4, 2]).subset([1])
    assert part.ids == ("2.png",)
    assert part.labels.tolist() == [2]
    np.testing.assert_array_equal(part.image(0), images.image(2))
    assert part.digests == (images.digests[2],)
    with pytest.raises(ValueError, match="read-only"):
        images.labels[0] = 5
