"""A zip of images becomes class folders, and a hostile one becomes an error that writes nothing."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeattn.data import archive
from edgeattn.data.archive import unpack_class_folders
from edgeattn.data.datasets import load_dataset
from edgeattn.data.spec import DataSpec
from edgeattn.errors import DataError


def picture(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(stream, "png")
    return stream.getvalue()


def good_members(train: int = 4, test: int = 3) -> dict[str, bytes]:
    counts = {"train": train, "test": test}
    return {
        f"{split}/{name}/{index:03d}.png": picture(index)
        for split, count in counts.items()
        for name in ("cat", "dog")
        # Not in the order of the names: the choice must not depend on it.
        for index in reversed(range(count))
    }


def write_zip(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


def test_the_first_images_of_each_class_are_unpacked(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "pets.zip", good_members())
    folder = unpack_class_folders(source, tmp_path / "cache", train_per_class=2, test_per_class=1)
    splits = load_dataset(DataSpec(kind="image_folder", root=folder), Path())
    assert splits.train.ids == tuple(f"train/{name}/00{i}.png" for name in ("cat", "dog") for i in (0, 1))
    assert splits.validation.ids == ("test/cat/000.png", "test/dog/000.png")
    assert splits.train.image(1)[0, 0, 0] == 1


def test_a_whole_folder_is_taken_as_it_is_and_another_choice_is_another_folder(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "pets.zip", good_members())
    first = unpack_class_folders(source, tmp_path / "cache", train_per_class=2)
    marker = first / "train/cat/000.png"
    marker.write_bytes(b"kept")
    calls: list[int] = []
    again = unpack_class_folders(
        source, tmp_path / "cache", train_per_class=2, progress=lambda done, _: calls.append(done)
    )
    assert (again, calls, marker.read_bytes()) == (first, [], b"kept")
    assert unpack_class_folders(source, tmp_path / "cache", train_per_class=3) != first


def test_an_interrupted_folder_is_unpacked_again(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "pets.zip", good_members())

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack_class_folders(source, tmp_path / "cache", progress=stop)
    assert list((tmp_path / "cache").iterdir()) == []
    folder = unpack_class_folders(source, tmp_path / "cache")
    assert len(list(folder.rglob("*.png"))) == 14


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "train/../evil.png",
        "train/../../evil.png",
        "train/cat/../../../evil.png",
        "/train/cat/evil.png",
        "train/cat/C:evil.png",
        "train\\cat\\evil.png",
        "train/cat/deep/evil.png",
        "train/.hidden/evil.png",
        "train/cat/evil.sh",
        "evil.png",
        "train/cat/\x1b[2J.png",
        "TRAIN/cat/evil.png",
        "train/cat/000.PNG",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    source = write_zip(tmp_path / "evil.zip", {**good_members(), name: picture(0)})
    with pytest.raises(DataError, match="holds"):
        unpack_class_folders(source, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["evil.zip"]


def test_an_image_that_unpacks_to_more_than_the_bound_is_refused(tmp_path: Path) -> None:
    bomb = bytes(archive.MAX_MEMBER_BYTES + 1)
    source = write_zip(tmp_path / "bomb.zip", {**good_members(), "train/cat/bomb.png": bomb})
    assert source.stat().st_size < 100_000
    with pytest.raises(DataError, match="bytes; at most"):
        unpack_class_folders(source, tmp_path / "cache")


def test_a_size_that_is_a_lie_is_noticed(tmp_path: Path) -> None:
    """The directory says 10 bytes; the image holds a megabyte."""
    source = write_zip(tmp_path / "lie.zip", {**good_members(), "train/cat/lie.png": bytes(1 << 20)})
    data = bytearray(source.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"train/cat/lie.png"))
    data[entry + 24 : entry + 28] = (10).to_bytes(4, "little")
    source.write_bytes(data)
    with pytest.raises(DataError, match=r"lie\.png|cannot be unpacked"):
        unpack_class_folders(source, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize(
    "content",
    [b"", b"no zip at all", b"PK\x03\x04" + bytes(50)],
    ids=["empty", "text", "only a header"],
)
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "broken.zip"
    source.write_bytes(content)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack_class_folders(source, tmp_path / "cache")


def test_a_damaged_image_is_refused(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "pets.zip", good_members())
    data = bytearray(source.read_bytes())
    data[60] ^= 0xFF  # inside the first image
    source.write_bytes(data)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack_class_folders(source, tmp_path / "cache")


def test_both_splits_must_be_there(tmp_path: Path) -> None:
    members = {name: data for name, data in good_members().items() if name.startswith("train")}
    with pytest.raises(DataError, match="must hold both"):
        unpack_class_folders(write_zip(tmp_path / "half.zip", members), tmp_path / "cache")
