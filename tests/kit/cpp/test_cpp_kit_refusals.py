"""What the C++ kit cannot use is named, with an exit code that says of what kind it is; nothing crashes it."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_kit_tools import Classify, copy_model, edit_manifest, read_output, replace_file
from PIL import Image

USAGE, MODEL, IMAGE, OUT_OF_MEMORY = 2, 3, 4, 6


def test_what_cannot_be_read_is_named_and_the_others_are_classified(
    cpp_kit: Path, classify: Classify, with_codecs: None, tmp_path: Path
) -> None:
    good = cpp_kit / "model" / "images" / "0001.jpg"
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((32, 32), 4000, dtype=np.uint16)).save(tmp_path / "sixteen.png")
    noise.save(tmp_path / "animated.png", save_all=True, append_images=[noise.rotate(90)])
    noise.resize((7, 64)).save(tmp_path / "thin.png")
    noise.save(tmp_path / "picture.gif")
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:-700])
    noise.save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-700])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image at all")
    header = bytearray((tmp_path / "whole.png").read_bytes()[:33])
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(bytes(header))
    os.mkfifo(tmp_path / "pipe.jpg")
    expected = {
        "cmyk.jpg": "4 colour channels",
        "sixteen.png": "16 bits",
        "animated.png": "animation",
        "thin.png": "at least 8",
        "picture.gif": "none of JPEG, PNG",
        "cut.jpg": "truncated",
        "cut.png": "truncated",
        "empty.jpg": "is empty",
        "text.jpg": "none of JPEG, PNG",
        "huge.png": "too large: 60000 x 60000",
        "pipe.jpg": "not a regular file",
        "absent.jpg": "cannot be opened",
        "": "cannot be opened",
    }
    found = read_output(classify("--json", *(tmp_path / n if n else "" for n in expected), good), IMAGE)[
        "images"
    ]
    for (name, message), got in zip(expected.items(), found[:-1], strict=True):
        assert message in got["error"], name
    assert "top" in found[-1]
    plain = classify(tmp_path / "cut.jpg", good)
    assert plain.returncode == IMAGE
    assert "truncated" in plain.stderr
    assert "0001.jpg" in plain.stdout


def _garbage(manifest: dict[str, Any], model: Path) -> None:
    replace_file(manifest["variants"]["openvino"], model, b"\x08\x08 no model")


def _cut_model(manifest: dict[str, Any], model: Path) -> None:
    whole = (model / manifest["variants"]["openvino"]["file"]).read_bytes()
    replace_file(manifest["variants"]["openvino"], model, whole[: len(whole) // 2])


def _outward_link(manifest: dict[str, Any], model: Path) -> None:
    name = manifest["variants"]["openvino"]["file"]
    shutil.move(model / name, model.parent / "elsewhere.onnx")
    (model / name).symlink_to(model.parent / "elsewhere.onnx")


BAD_MODELS: dict[str, tuple[Callable[[dict[str, Any], Path], object], str]] = {
    "other-version": (lambda m, _: m.update(schema_version=2), "schema_version is 2"),
    "no-variant": (lambda m, _: m["variants"].clear(), "variants has no openvino"),
    "outward-path": (
        lambda m, _: m["variants"]["openvino"].update(file="../elsewhere.onnx"),
        "path inside the folder",
    ),
    "absolute-path": (
        lambda m, _: m["variants"]["openvino"].update(file="/etc/passwd"),
        "path inside the folder",
    ),
    "outward-link": (_outward_link, "leads out of the folder"),
    "changed-hash": (
        lambda m, _: m["variants"]["openvino"].update(sha256="0" * 64),
        "not the file that model.json lists",
    ),
    "changed-size": (
        lambda m, _: m["variants"]["openvino"].update(size_bytes=5),
        "not the file that model.json lists",
    ),
    "no-hash": (lambda m, _: m["variants"]["openvino"].update(sha256="ABC"), "sha256"),
    "garbage": (_garbage, "OpenVINO cannot read the model"),
    "cut": (_cut_model, "OpenVINO cannot read the model"),
    "zero-deviation": (lambda m, _: m["preprocess"].update(std=[1, 0, 1]), "a positive number"),
    "wrong-size": (lambda m, _: m["preprocess"].update(size=192, resize=None), "shape"),
    "huge-size": (lambda m, _: m["preprocess"].update(size=1 << 40), "size is 1099511627776"),
    "text-for-number": (lambda m, _: m["preprocess"].update(mean=[1, 2, "x"]), 'mean[2] is "x"'),
    "classes-missing": (lambda m, _: m.update(classes=m["classes"][:-1]), "shape"),
    "other-output": (lambda m, _: m["model"]["output"].update(name="no-such-output"), "OpenVINO"),
}


@pytest.mark.parametrize("fault", BAD_MODELS)
def test_a_changed_model_folder_is_refused(
    fault: str, cpp_kit: Path, classify: Classify, tmp_path: Path
) -> None:
    change, message = BAD_MODELS[fault]
    model = copy_model(cpp_kit, tmp_path)
    edit_manifest(model, lambda manifest: change(manifest, model))
    done = classify("x.jpg", model=model)
    assert done.returncode in ((MODEL, 5) if fault == "other-output" else (MODEL,))
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 1_000_000,
        '{"a":1,"a":2}',
        '{"name":"\xff"}',
        "nul",
        '{"schema_version":01}',
        "1e999",
        "{} {}",
    ],
    ids=["empty", "open", "deep", "twice", "latin1", "word", "octal", "range", "more"],
)
def test_a_manifest_that_is_no_json_is_refused(
    text: str, cpp_kit: Path, classify: Classify, tmp_path: Path
) -> None:
    model = copy_model(cpp_kit, tmp_path)
    (model / "model.json").write_bytes(text.encode("latin-1"))
    done = classify("x.jpg", model=model)
    assert done.returncode == MODEL
    assert "is not valid JSON" in done.stderr or "is empty" in done.stderr


@pytest.mark.parametrize("cached", [True, False])
def test_too_little_memory_is_an_error_code_and_never_a_signal(
    cpp_kit: Path, classify: Classify, photographs: list[Path], tmp_path: Path, cached: bool
) -> None:
    plain = next(path for path in photographs if path.suffix == ".ppm")
    program = [str(cpp_kit / "build" / "edgeattn-classify"), "--version"]
    codes = []
    for megabytes in (20, 28, 60, 100, 116, 150, 204, 240, 280, 300, 350, 8000):
        size = megabytes << 20

        def limit(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_AS, (size, size))

        started = subprocess.run(program, capture_output=True, check=False, preexec_fn=limit)
        if started.returncode != 0:
            # The system's loader, or oneTBB's part of it, had no room: the program never began.
            codes.append(started.returncode)
            continue
        cache = None if cached else tmp_path / str(megabytes)
        done = classify(plain, cache=cache, preexec_fn=limit)
        codes.append(done.returncode)
        assert done.returncode in (0, OUT_OF_MEMORY), done.stderr
        assert done.returncode == 0 or "Out of memory" in done.stderr
    assert codes[0] != 0
    assert OUT_OF_MEMORY in codes
    assert codes[-1] == 0


def test_wrong_use_is_explained(classify: Classify) -> None:
    for arguments, message in {
        ("--nonsense",): "Unknown option --nonsense",
        ("--top", "0", "x.jpg"): "--top is 0",
        ("--threads",): "--threads needs a value",
        (): "Name an image",
        ("--bench", "5", "--self-test"): "--bench needs an image",
    }.items():
        done = classify(*arguments)
        assert done.returncode == USAGE
        assert message in done.stderr
    assert classify("--help").stdout.startswith("usage: edgeattn-classify")


def test_odd_file_names_are_valid_json(classify: Classify, tmp_path: Path) -> None:
    names = [b'quote"back\\slash.jpg', b"line\nfeed.jpg", "caf\u00e9.jpg".encode(), b"latin\xe9.jpg"]
    paths = [os.fsdecode(os.fsencode(tmp_path) + b"/" + name) for name in names]
    found = read_output(classify("--json", *paths), IMAGE)["images"]
    assert [Path(item["image"]).name for item in found] == [
        'quote"back\\slash.jpg',
        "line\nfeed.jpg",
        "caf\u00e9.jpg",
        "latin\ufffd.jpg",
    ]
