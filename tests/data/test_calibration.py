"""A calibration set is what its manifest says, or it is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from edgeattn.data import (
    CalibrationManifest,
    DataSpec,
    DataSplits,
    ImageSet,
    Preprocess,
    load_calibration,
    load_dataset,
    load_manifest,
    preprocess_image,
)
from edgeattn.data.calibration import select_calibration_images
from edgeattn.errors import DataError

SMALL = Preprocess(size=16)
MANIFESTS = Path(__file__).parents[2] / "calibration"


def image_folder(root: Path, count: int = 30) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:02}.png")
    return root


def write_manifest(folder: Path, **fields: object) -> Path:
    value = {"name": "test", "data": {"kind": "image_folder", "root": "images"}, "count": 20, **fields}
    path = folder / "calibration.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def test_a_manifest_becomes_network_inputs(tmp_path: Path) -> None:
    image_folder(tmp_path / "images")
    path = write_manifest(tmp_path)
    calibration = load_calibration(path, preprocess=SMALL)
    assert calibration.tensors.shape == (20, 3, 16, 16)
    assert calibration.tensors.dtype == np.float32
    assert calibration.manifest == load_manifest(path)
    for name, tensor in zip(calibration.ids, calibration.tensors, strict=True):
        pixels = np.asarray(Image.open(tmp_path / "images" / name))
        np.testing.assert_array_equal(tensor, preprocess_image(pixels, SMALL))
    batches = list(calibration.batches(8))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate(batches), calibration.tensors)


def test_a_limit_for_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leave out the limit"):
        load_calibration(write_manifest(tmp_path), preprocess=SMALL, limit=16)


def test_the_choice_is_seeded_balanced_and_from_train(tmp_path: Path) -> None:
    image_folder(tmp_path / "images")
    first, again, other = (
        load_calibration(write_manifest(tmp_path, seed=seed), preprocess=SMALL) for seed in (0, 0, 1)
    )
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint
    assert sum(name.startswith("cat") for name in first.ids) == 10
    splits = load_dataset(DataSpec(kind="image_folder", root=tmp_path / "images"), tmp_path)
    assert set(first.ids) <= set(splits.train.ids)


def test_the_fingerprint_follows_the_preprocessing(tmp_path: Path) -> None:
    image_folder(tmp_path / "images")
    path = write_manifest(tmp_path)
    larger = load_calibration(path, preprocess=Preprocess(size=24))
    assert load_calibration(path, preprocess=SMALL).fingerprint != larger.fingerprint


def test_explicit_indices_name_positions_of_the_split(tmp_path: Path) -> None:
    image_folder(tmp_path / "images")
    chosen = [*range(0, 32, 2)]
    path = write_manifest(tmp_path, count=None, indices=chosen)
    splits = load_dataset(DataSpec(kind="image_folder", root=tmp_path / "images"), tmp_path)
    calibration = load_calibration(path, preprocess=SMALL)
    assert calibration.ids == tuple(splits.train.ids[index] for index in chosen)
    with pytest.raises(DataError, match="names index 48 of the train split, which has 48"):
        load_calibration(write_manifest(tmp_path, count=None, indices=[*range(48, 20, -1)]), preprocess=SMALL)


def test_without_data_the_runs_splits_are_drawn_from(tmp_path: Path) -> None:
    splits = load_dataset(DataSpec(kind="image_folder", root=image_folder(tmp_path / "images")), tmp_path)
    path = write_manifest(tmp_path, data=None)
    assert set(load_calibration(path, splits, SMALL).ids) <= set(splits.train.ids)
    with pytest.raises(DataError, match="has no data field and no data set was given"):
        load_calibration(path, preprocess=SMALL)


def test_measured_images_are_refused(tmp_path: Path) -> None:
    """Whether by the split's name or by another seed, calibrating on what is measured flatters it."""
    splits = load_dataset(DataSpec(kind="image_folder", root=image_folder(tmp_path / "images")), tmp_path)
    load_calibration(write_manifest(tmp_path), splits, SMALL)
    other_seed = {"kind": "image_folder", "root": "images", "split_seed": 7}
    for fields in ({"data": other_seed, "count": 40}, {"split": "validation", "count": 12 + 4}):
        with pytest.raises(DataError, match=r"shares \d+ images with the validation|which has 12"):
            load_calibration(write_manifest(tmp_path, **fields), splits, SMALL)


def test_equal_pictures_under_other_names_are_not_an_overlap() -> None:
    pixels = np.tile(np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8), (40, 1, 1, 1))
    images = ImageSet.from_array(pixels, [0, 1] * 20)
    splits = DataSplits(images.subset(range(20)), images.subset(range(20, 40)), ("a", "b"))
    manifest = CalibrationManifest(name="test", count=16)
    assert len(load_calibration(manifest, splits, SMALL)) == 16


def test_recorded_content_is_checked(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    chosen = select_calibration_images(load_manifest(write_manifest(tmp_path)), base_dir=tmp_path)
    path = write_manifest(tmp_path, sha256=chosen.fingerprint)
    load_calibration(path, preprocess=SMALL)
    Image.new("RGB", (16, 16)).save(root / chosen.ids[3])
    with pytest.raises(DataError, match="recorded other images"):
        load_calibration(path, preprocess=SMALL)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 15}, "count: Input should be greater than or equal to 16"),
        ({"count": None}, "give either count or indices"),
        ({"indices": [*range(20)]}, "give either count or indices"),
        ({"count": None, "indices": [0] * 16}, "indices must be distinct"),
        ({"colour": 1}, "colour: Extra inputs are not permitted"),
        ({"sha256": "abc"}, "sha256"),
        ({"data": {"kind": "digits", "preprocess": {"size": 32}}}, "preprocess cannot be set here"),
        ({"split": "test"}, "split"),
    ],
)
def test_wrong_manifests_are_refused(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_manifest(write_manifest(tmp_path, **fields))


def test_files_that_are_no_manifests_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_calibration(path, preprocess=SMALL)
    for text, message in (("- a\n- b\n", "must be a mapping"), ("a: [", "not valid YAML"), ("", "must be a")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            load_calibration(path, preprocess=SMALL)
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(DataError, match="not valid YAML"):
        load_calibration(path, preprocess=SMALL)
    path.write_text("a: " + "x" * (1 << 20))
    with pytest.raises(DataError, match="larger than 1 MiB"):
        load_calibration(path, preprocess=SMALL)
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match="is not one of these"):
        load_calibration(tmp_path / "a.txt", preprocess=SMALL)


def test_too_few_images_in_the_split_are_refused(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", count=9)
    with pytest.raises(DataError, match="asks for 20 images of the train split, which has 14"):
        load_calibration(write_manifest(tmp_path), preprocess=SMALL)


# bring your own


def test_a_folder_of_images_serves(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", 8)
    calibration = load_calibration(root, preprocess=SMALL)
    assert (len(calibration), calibration.name, calibration.ids[0]) == (16, "images", "cat/00.png")
    with pytest.raises(DataError, match="holds 8 images; calibration needs from 16"):
        load_calibration(root / "cat", preprocess=SMALL)
    with pytest.raises(DataError, match="need the network's preprocessing"):
        load_calibration(root)


def test_an_array_serves_as_it_is(tmp_path: Path) -> None:
    tensors = np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "own.npy", tensors)
    calibration = load_calibration(tmp_path / "own.npy")
    np.testing.assert_array_equal(calibration.tensors, tensors)
    assert calibration.name == "own"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((20, 3, 8, 8)), "must be float32"),
        (np.zeros((20, 192), np.float32), "must be float32 of shape"),
        (np.float32(1), "must be float32 of shape"),
        (np.zeros((15, 3, 8, 8), np.float32), "holds 15 images"),
        (np.full((20, 3, 8, 8), np.nan, np.float32), "not finite"),
        (np.zeros((20, 3, 0, 8), np.float32), "is empty"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "own.npy", array)
    with pytest.raises(DataError, match=message):
        load_calibration(tmp_path / "own.npy")


def test_hostile_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.npy"
    np.save(path, np.array([{"run": "code"}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"not a plain \.npy file"):
        load_calibration(path)
    with path.open("wb") as stream:  # promises 400 GB
        header = {"descr": "<f4", "fortran_order": False, "shape": (100, 1000, 1000, 1000)}
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(DataError, match="not a plain"):
        load_calibration(path)
    for content in (b"", b"rubbish", b"PK\x03\x04rubbish"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a plain"):
            load_calibration(path)


# the manifests of this project


def test_digits_manifest() -> None:
    pytest.importorskip("sklearn")
    calibration = load_calibration(MANIFESTS / "digits.yaml", preprocess=SMALL)
    assert len(calibration) == 128


@pytest.mark.skipif("EDGEATTN_DATA" not in os.environ, reason="EDGEATTN_DATA is not set: no data folder here")
@pytest.mark.parametrize(
    ("name", "count", "measured"), [("sign_digits", 200, 411), ("imagenet_samples", 200, 400)]
)
def test_photograph_manifests_are_disjoint_from_what_is_measured(
    name: str, count: int, measured: int
) -> None:
    manifest = load_manifest(MANIFESTS / f"{name}.yaml")
    assert manifest.data is not None
    splits = load_dataset(manifest.data, MANIFESTS)
    chosen = select_calibration_images(manifest, splits, MANIFESTS)
    assert len(chosen) == count
    assert len(splits.validation) == measured
    assert not set(chosen.ids) & set(splits.validation.ids)
