"""Every kind of data set loads, and whatever is wrong with one is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeattn.data import DataSpec, check_images, load_dataset
from edgeattn.errors import DataError


def write_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def class_folders(root: Path, count: int = 5, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    for number, name in enumerate(names):
        for index in range(count):
            write_image(root / name / f"{index}.png", seed=100 * number + index)
    return root


def folder_spec(root: Path | str, **options: object) -> DataSpec:
    return DataSpec.model_validate({"kind": "image_folder", "root": root, **options})


def labelled(root: Path, rows: str) -> DataSpec:
    root.mkdir(parents=True, exist_ok=True)
    (root / "labels.csv").write_text("file,class_index\n" + rows)
    return DataSpec(kind="labelled_files", root=root)


def test_importing_the_package_needs_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys, edgeattn.data as d; assert not {'torch', 'sklearn'} & set(sys.modules); d.Preprocess()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# digits


def test_digits_are_rgb_scaled_from_sixteenths() -> None:
    pytest.importorskip("sklearn")
    splits = load_dataset(DataSpec(kind="digits"), Path())
    assert len(splits.train) + len(splits.validation) == 1797
    assert splits.class_names == tuple("0123456789")
    image = splits.train.image(0)
    assert image.shape == (8, 8, 3)
    assert max(image.max() for image, _ in splits.train) == 255
    assert not set(splits.train.ids) & set(splits.validation.ids)
    assert splits.fingerprint == load_dataset(DataSpec(kind="digits"), Path()).fingerprint
    other = load_dataset(DataSpec(kind="digits", split_seed=1), Path())
    assert splits.fingerprint != other.fingerprint


# image_folder


def test_class_folders_are_divided(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("not an image")
    (class_folders(tmp_path) / "cat" / "notes.txt").write_text("not an image")
    write_image(tmp_path / "cat" / ".hidden.png")
    splits = load_dataset(folder_spec(tmp_path), tmp_path)
    assert splits.class_names == ("cat", "dog")
    assert (len(splits.train), len(splits.validation)) == (8, 2)
    assert splits.validation.labels.tolist() == [0, 1]
    assert splits.train.ids[0].startswith("cat/")
    assert [image.shape for image, _ in splits.validation] == [(16, 16, 3)] * 2


def test_divided_folders_are_used_as_they_are(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", 4)
    class_folders(tmp_path / "val", 1)
    class_folders(tmp_path / "test", 2)
    splits = load_dataset(folder_spec(tmp_path), tmp_path)
    assert (len(splits.train), len(splits.validation)) == (8, 2)
    assert splits.validation.ids == ("val/cat/0.png", "val/dog/0.png")


def test_divided_folders_must_hold_the_same_classes(tmp_path: Path) -> None:
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "val", names=("cat", "cow"))
    with pytest.raises(DataError, match="only one of them has 'cow', 'dog'"):
        load_dataset(folder_spec(tmp_path), tmp_path)


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    class_folders(tmp_path)
    before = load_dataset(folder_spec(tmp_path), tmp_path).fingerprint
    os.utime(tmp_path / "cat" / "0.png", (0, 0))
    assert load_dataset(folder_spec(tmp_path), tmp_path).fingerprint == before
    write_image(tmp_path / "cat" / "0.png", seed=999)
    assert load_dataset(folder_spec(tmp_path), tmp_path).fingerprint != before


def test_relative_roots_start_from_the_recipe(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    assert len(load_dataset(folder_spec("images"), tmp_path).train) == 8


def test_environment_variables_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "images")
    monkeypatch.setenv("EDGEATTN_TEST_ROOT", str(tmp_path))
    for root in ("${EDGEATTN_TEST_ROOT}/images", "$EDGEATTN_TEST_ROOT/images"):
        assert len(load_dataset(folder_spec(root), Path("/nowhere")).train) == 8
    monkeypatch.delenv("EDGEATTN_TEST_ROOT")
    with pytest.raises(DataError, match=r"EDGEATTN_TEST_ROOT, which is not set.*export EDGEATTN_TEST_ROOT="):
        load_dataset(folder_spec("${EDGEATTN_TEST_ROOT}/images"), tmp_path)


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_dataset(folder_spec("absent"), tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        load_dataset(folder_spec(write_image(tmp_path / "file.png")), tmp_path)
    with pytest.raises(DataError, match="holds no class folders"):
        load_dataset(folder_spec(tmp_path), tmp_path)
    class_folders(tmp_path / "one", names=("cat",))
    with pytest.raises(DataError, match="single class, 'cat'"):
        load_dataset(folder_spec("one"), tmp_path)
    (class_folders(tmp_path / "hollow") / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        load_dataset(folder_spec("hollow"), tmp_path)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    outside = write_image(tmp_path / "outside.png")
    root = class_folders(tmp_path / "root")
    inner = root / "cat" / "inner.png"
    inner.symlink_to(root / "dog" / "0.png")
    assert len(load_dataset(folder_spec(root), tmp_path).train) == 9
    (root / "cat" / "link.png").symlink_to(outside)
    with pytest.raises(DataError, match=r"link\.png leads out of the data folder"):
        load_dataset(folder_spec(root), tmp_path)
    (root / "cat" / "link.png").unlink()
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(DataError, match="loop"):
        load_dataset(folder_spec(root), tmp_path)
    (root / "loop").unlink()
    (root / "cow").symlink_to(tmp_path)
    with pytest.raises(DataError, match="cow leads out"):
        load_dataset(folder_spec(root), tmp_path)


def test_near_duplicates_stay_together(tmp_path: Path) -> None:
    for name, seed in (("cat", 0), ("dog", 50)):
        for index in range(6):
            first = write_image(tmp_path / name / f"{index}a.png", seed + index)
            pixels = np.asarray(Image.open(first)) // 2 + 60
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f"{index}b.png")
    calls: list[tuple[int, int]] = []
    splits = load_dataset(
        folder_spec(tmp_path, group_near_duplicates=True, validation_share=0.34),
        tmp_path,
        lambda done, total: calls.append((done, total)),
    )
    sides = [
        {Path(name).stem[0] + Path(name).parts[0] for name in side.ids}
        for side in (splits.train, splits.validation)
    ]
    assert not sides[0] & sides[1]
    assert len(splits.validation) == 8
    assert calls[-1] == (24, 24)


def test_bad_images_are_reported_together(tmp_path: Path) -> None:
    class_folders(tmp_path, 10)
    for index in range(7):
        (tmp_path / "cat" / f"{index}.png").write_bytes(b"broken")
    splits = load_dataset(folder_spec(tmp_path, validation_share=0.1), tmp_path)
    everything = [splits.train, splits.validation]
    with pytest.raises(DataError) as caught:
        for images in everything:
            check_images(images)
    message = str(caught.value)
    assert "images cannot be used" in message
    assert "cat/0.png" in message
    assert message.count("\n") <= 6


# labelled_files


def test_labelled_files_are_divided_by_the_share(tmp_path: Path) -> None:
    for index in range(30):
        write_image(tmp_path / f"{index}.png", index)
    rows = "".join(f"{index}.png,{index * 3}\n" for index in range(30))
    splits = load_dataset(labelled(tmp_path, rows), tmp_path)
    assert (len(splits.train), len(splits.validation)) == (24, 6)
    assert splits.num_classes == 88
    assert splits.train.labels.tolist() == [3 * int(Path(name).stem) for name in splits.train.ids]


def test_class_names_come_from_a_sibling_file(tmp_path: Path) -> None:
    spec = labelled(tmp_path, "a.png,0\nb.png,1\nc.png,0\n")
    for name in "abc":
        write_image(tmp_path / f"{name}.png")
    assert load_dataset(spec, tmp_path).class_names == ("0", "1")
    (tmp_path / "classes.txt").write_text("cat\ndog\ncow\n")
    assert load_dataset(spec, tmp_path).class_names == ("cat", "dog", "cow")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"names 1 classes, but labels\.csv uses class_index 1"):
        load_dataset(spec, tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "..\\secret.png", "C:\\x.png", "\\x.png"]
)
def test_rows_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "secret.png")
    spec = labelled(tmp_path / "root", f"{name},0\n")
    with pytest.raises(DataError, match=r"line 2: .* leads out of the data folder"):
        load_dataset(spec, tmp_path)


def test_a_row_cannot_leave_the_folder_by_a_link(tmp_path: Path) -> None:
    outside = write_image(tmp_path / "outside.png")
    spec = labelled(tmp_path / "root", "a.png,0\nb.png,1\n")
    write_image(tmp_path / "root" / "a.png")
    (tmp_path / "root" / "b.png").symlink_to(outside)
    with pytest.raises(DataError, match=r"b\.png leads out"):
        load_dataset(spec, tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "names no images"),
        ("a.png,0\na.png,1\n", "named twice"),
        ("a.png,-1\n", "whole number from 0"),
        ("a.png,1e3\n", "whole number from 0"),
        ("a.png,999999999\n", "whole number from 0"),
        ("a.png\n", "whole number from 0"),
        (",3\n", "column 'file' is empty"),
        ("a.png,0\nb.png,0\n", "at least two"),
        ("a.png,0\nmissing.png,1\n", "1 files that are not in .*'missing.png'"),
    ],
)
def test_wrong_labels_are_refused(tmp_path: Path, rows: str, message: str) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=message):
        load_dataset(labelled(tmp_path, rows), tmp_path)


def test_unreadable_labels_are_refused(tmp_path: Path) -> None:
    spec = DataSpec(kind="labelled_files", root=tmp_path)
    with pytest.raises(DataError, match=r"labels\.csv cannot be read"):
        load_dataset(spec, tmp_path)
    (tmp_path / "labels.csv").write_text("name;class\nx;1\n")
    with pytest.raises(DataError, match="must start with the header"):
        load_dataset(spec, tmp_path)
    (tmp_path / "labels.csv").write_bytes(b"file,class_index\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="not a UTF-8 CSV"):
        load_dataset(spec, tmp_path)
    (tmp_path / "labels.csv").write_text("file,class_index\n" + "x" * 200_000 + ",1\n")
    with pytest.raises(DataError, match="not a UTF-8 CSV"):
        load_dataset(spec, tmp_path)
