"""Engine manifests: what was saved comes back, and nothing else gets through."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeattn.artifact import IoSpec, sha256_of_bytes
from edgeattn.errors import ArtifactError
from edgeattn.targets import Engine, load_engine, save_engine


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    (tmp_path / "in").mkdir()
    path, side = tmp_path / "in" / "m.engine", tmp_path / "in" / "m.bin"
    path.write_bytes(b"engine")
    side.write_bytes(b"weights")
    (tmp_path / "outside").write_bytes(b"secret")
    return Engine(
        target="openvino-cpu",
        path=path,
        sha256=sha256_of_bytes(b"engine"),
        size_bytes=13,
        inputs=(IoSpec("input", (1, 3, 8, 8)),),
        outputs=(IoSpec("logits", (1, 16)),),
        precision="int8",
        details={"side_files": {"m.bin": sha256_of_bytes(b"weights")}, "kernels": 3},
    )


def test_round_trip_from_either_path(engine: Engine) -> None:
    manifest = save_engine(engine)
    assert manifest.name == "m.engine.json"
    assert load_engine(engine.path) == load_engine(manifest) == engine
    assert str(engine.path.parent) not in manifest.read_text()


def test_a_moved_folder_still_loads(engine: Engine, tmp_path: Path) -> None:
    save_engine(engine)
    moved = engine.path.parent.rename(tmp_path / "moved")
    assert load_engine(moved / "m.engine").path == moved / "m.engine"


def change(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value.update(fields)


def shape(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["inputs"][0].update(shape=value)


@pytest.mark.parametrize(
    "edit",
    [
        change(path="../outside"),
        change(path="/etc/passwd"),
        change(path=".."),
        change(path="..\\outside"),
        change(path=""),
        change(path=7),
        change(path="m.bin"),
        change(sha256="0"),
        change(sha256=None),
        change(sha256="0" * 64),
        change(target="../x"),
        change(schema_version=2),
        change(precision="int4"),
        change(size_bytes=-1),
        change(size_bytes=True),
        change(details=[]),
        change(details={"side_files": {"../outside": sha256_of_bytes(b"secret")}}),
        change(details={"side_files": {"m.bin": 7}}),
        change(details={"side_files": ["m.bin"]}),
        change(inputs=None),
        shape([1 << 40]),
        shape([0]),
        shape([1.5]),
        shape([True]),
        shape("8"),
        lambda value: value.pop("sha256"),
        lambda value: value["outputs"][0].update(dtype="object"),
    ],
)
def test_hostile_manifests_are_refused(engine: Engine, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = save_engine(engine)
    value = json.loads(manifest.read_text())
    edit(value)
    manifest.write_text(json.dumps(value))
    with pytest.raises(ArtifactError):
        load_engine(engine.path)


def test_links_out_of_the_folder_are_refused(engine: Engine, tmp_path: Path) -> None:
    manifest = save_engine(engine)
    link = engine.path.parent / "link"
    link.symlink_to(tmp_path / "outside")
    value = json.loads(manifest.read_text())
    value["details"]["side_files"] = {"link": sha256_of_bytes(b"secret")}
    manifest.write_text(json.dumps(value))
    with pytest.raises(ArtifactError, match="leaves that folder"):
        load_engine(engine.path)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(ArtifactError):
        load_engine(engine.path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{"])
def test_what_is_no_manifest_is_refused(engine: Engine, text: str) -> None:
    (engine.path.parent / "m.engine.json").write_text(text)
    with pytest.raises(ArtifactError):
        load_engine(engine.path)


def test_a_missing_manifest_says_so(engine: Engine) -> None:
    with pytest.raises(ArtifactError, match=r"m\.engine\.json"):
        load_engine(engine.path)
