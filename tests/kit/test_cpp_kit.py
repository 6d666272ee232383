"""The C++ kit is built as its README says, sees the same pixels as training, and computes the same logits."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeattn.data.images import load_image
from edgeattn.data.preprocess import preprocess_image, resize_and_crop
from edgeattn.data.spec import Preprocess
from edgeattn.kit.model_folder import load_model, load_reference
from edgeattn.kit.write import write_kit
from edgeattn.onnx_graph import Graph
from edgeattn.targets.openvino_cpu import OpenVinoCpu

USAGE, MODEL, IMAGE, SELF_TEST = 2, 3, 4, 7

Classify = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cpp_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration's kit, built; not to be changed."""
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'edgeattn[openvino]'")
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: apt-get install cmake g++")
    kit = tmp_path_factory.mktemp("cpp-kit") / "kit"
    write_kit("cpp", None, kit)
    folder = _run([sys.executable, "cmake/find_openvino.py"], kit).strip()
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    _run(["cmake", "-S", ".", "-B", "build", *generator, f"-DOpenVINO_DIR={folder}"], kit)
    _run(["cmake", "--build", "build", "--parallel", str(os.cpu_count())], kit)
    return kit


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "warning:" not in done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def with_codecs(cpp_kit: Path) -> None:
    """Skips where the program was built without libjpeg or libpng."""
    cache = (cpp_kit / "build" / "CMakeCache.txt").read_text()
    if "JPEG_LIBRARY" not in cache or "JPEG_LIBRARY-NOTFOUND" in cache or "PNG_PNG_INCLUDE_DIR-NOTFOUND" in cache:
        pytest.skip("needs libjpeg-turbo and libpng: apt-get install libjpeg-dev libpng-dev")


@pytest.fixture(scope="session")
def classify(cpp_kit: Path) -> Classify:
    """Runs edgeattn-classify with a cache that the tests share, so that starts are quick."""

    def run(
        *arguments: str | Path, model: Path | None = None, cache: Path | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        command = [
            cpp_kit / "build" / "edgeattn-classify",
            *("--model", model or cpp_kit / "model"),
            *("--cache", cache or cpp_kit / "build" / "cache"),
            *arguments,
        ]
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=120, check=False, **more
        )
        # Killed by a signal is never an answer.
        assert done.returncode >= 0, done.stderr
        return done

    return run


def _json(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_the_kit_holds_its_program_its_model_and_nothing_that_was_built(tmp_path: Path) -> None:
    model = write_kit("cpp", None, tmp_path / "kit")
    names = {path.name for path in (tmp_path / "kit").rglob("*")}
    assert {"CMakeLists.txt", "edgeattn_kit.h", "edgeattn_kit.hpp", "main.cpp", "README.md"} <= names
    assert {"model.json", "reference.json", model.variants["openvino"].file} <= names
    assert "build" not in names


def test_every_demo_image_has_the_pixels_of_training_and_the_logits_of_openvino_cpu(
    cpp_kit: Path, classify: Classify, with_codecs: None
) -> None:
    folder = cpp_kit / "model"
    model = load_model(folder)
    reference = load_reference(folder, model)
    found = _json(classify("--json", "--logits", "--top", "1", *(folder / i.file for i in reference.images)))
    images = [load_image(folder / image.file) for image in reference.images]
    expected = _openvino_logits(folder, [preprocess_image(image, model.preprocess) for image in images])
    for image, logits, got in zip(reference.images, expected, found["images"], strict=True):
        assert got["pixels_sha256"] == image.pixels_sha256
        np.testing.assert_array_equal(np.float32(got["logits"]), logits)
        assert got["top"][0]["index"] == int(logits.argmax())
        assert got["top"][0]["class"] == model.classes[int(logits.argmax())]


def test_the_self_test_passes_if_and_only_if_openvino_agrees_with_ort_cpu_within_the_tolerance(
    cpp_kit: Path, classify: Classify, with_codecs: None
) -> None:
    folder = cpp_kit / "model"
    model = load_model(folder)
    reference = load_reference(folder, model)
    logits = _openvino_logits(
        folder, [preprocess_image(load_image(folder / i.file), model.preprocess) for i in reference.images]
    )
    off = [float(np.abs(a - np.float32(i.logits)).max()) for a, i in zip(logits, reference.images, strict=True)]
    same = sum(int(a.argmax()) == i.top1 for a, i in zip(logits, reference.images, strict=True))
    passes = max(off) <= reference.tolerance and same == len(off)
    found = _json(classify("--json", "--self-test"), 0 if passes else SELF_TEST)["self_test"]
    assert found["passed"] is passes
    assert (found["images"], found["same_pixels"], found["same_top1"]) == (len(off), len(off), same)
    assert found["max_logit_difference"] == pytest.approx(max(off), rel=1e-6)


def test_the_self_test_finds_a_wrong_expectation(
    cpp_kit: Path, classify: Classify, with_codecs: None, tmp_path: Path
) -> None:
    model = _copy(cpp_kit, tmp_path)
    reference = json.loads((model / "reference.json").read_text())
    reference["tolerance"] = 1e6
    reference["images"] = reference["images"][:2]
    reference["images"][1]["pixels_sha256"] = "0" * 64
    _edit(model, lambda manifest: _replace(manifest["reference"], model, json.dumps(reference).encode()))
    done = classify("--self-test", model=model)
    assert done.returncode == SELF_TEST
    assert reference["images"][1]["file"] + " has other pixels" in done.stderr


PREPROCESSES = [
    Preprocess(size=224, resize=256),
    Preprocess(size=224, resize=None, interpolation="bicubic"),
    Preprocess(size=224, resize=225, interpolation="bicubic"),
    Preprocess(size=224, resize=257, interpolation="nearest"),
    Preprocess(size=224, resize=224, interpolation="bilinear"),
]


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of every kind that is read: sizes, colours, transparency, orientation, subsampling."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(7)

    def picture(width: int, height: int, channels: int = 3) -> Image.Image:
        # Smooth and noisy parts, and every grey value.
        y, x = np.mgrid[0:height, 0:width]
        base = np.stack([(x * (c + 2) + y * (3 - c)) % 256 for c in range(channels)], axis=-1)
        noise = random.integers(0, 256, base.shape)
        pixels = np.where((x // 16 + y // 16)[..., None] % 2 == 0, base, noise).astype(np.uint8)
        return Image.fromarray(pixels.squeeze())

    made: list[Path] = []

    def save(image: Image.Image, name: str, **options: Any) -> None:
        image.save(folder / name, **options)
        made.append(folder / name)

    sizes = [(8, 8), (9, 200), (224, 224), (225, 223), (256, 300), (301, 224), (640, 480), (37, 1000), (1031, 67)]
    for width, height in sizes:
        save(picture(width, height), f"{width}x{height}.png")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(picture(90, 61), f"exif{orientation}.jpg", exif=exif, quality=90)
        save(picture(40, 31), f"exif{orientation}.png", exif=exif)
    for subsampling in (0, 1, 2):
        save(picture(121, 93), f"sub{subsampling}.jpg", subsampling=subsampling, quality=80)
    save(picture(121, 93), "progressive.jpg", progressive=True)
    save(picture(121, 93, 1), "grey.jpg")
    save(picture(121, 93, 1), "grey.png")
    save(picture(121, 93, 2), "grey_alpha.png")
    save(picture(300, 256, 4), "alpha.png")
    save(picture(121, 93).quantize(200), "palette.png")
    save(picture(121, 93).quantize(16), "palette4.png")
    save(picture(121, 93, 1).point(lambda v: 255 * (v > 99)).convert("1"), "bits.png")
    save(picture(121, 93).quantize(50), "palette_alpha.png", transparency=bytes(range(0, 250, 5)))
    save(picture(121, 93), "colour_key.png", transparency=(255, 0, 0))
    save(picture(60, 41), "plain.ppm")
    return made


@pytest.mark.parametrize("preprocess", PREPROCESSES, ids=lambda p: f"{p.interpolation}-{p.resize}")
def test_decoding_and_resizing_give_the_bytes_that_pillow_gives(
    preprocess: Preprocess,
    cpp_kit: Path,
    classify: Classify,
    with_codecs: None,
    photographs: list[Path],
    tmp_path: Path,
) -> None:
    model = _copy(cpp_kit, tmp_path)
    _edit(model, lambda manifest: manifest.update(preprocess=preprocess.model_dump(mode="json")))
    found = _json(classify("--json", "--logits", *photographs, model=model))["images"]
    different = [
        path.name
        for path, got in zip(photographs, found, strict=True)
        if got["pixels_sha256"] != _sha256(resize_and_crop(load_image(path), preprocess).tobytes())
    ]
    assert different == []


def test_normalization_is_float32_as_in_training(
    cpp_kit: Path, classify: Classify, photographs: list[Path], tmp_path: Path
) -> None:
    model = _copy(cpp_kit, tmp_path)
    preprocess = Preprocess(size=224, resize=None, mean=(0.1, 0.7, 1 / 3), std=(0.3, 1.7, 0.013))
    _edit(model, lambda manifest: manifest.update(preprocess=preprocess.model_dump(mode="json")))
    plain = [path for path in photographs if path.suffix == ".ppm"]
    found = _json(classify("--json", "--logits", *plain, model=model))["images"]
    expected = _openvino_logits(model, [preprocess_image(load_image(path), preprocess) for path in plain])
    for got, logits in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.float32(got["logits"]), logits)


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
    import zlib

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
    found = _json(classify("--json", *(tmp_path / n if n else "" for n in expected), good), IMAGE)["images"]
    for (name, message), got in zip(expected.items(), found[:-1], strict=True):
        assert message in got["error"], name
    assert "top" in found[-1]
    plain = classify(tmp_path / "cut.jpg", good)
    assert plain.returncode == IMAGE
    assert "truncated" in plain.stderr
    assert "0001.jpg" in plain.stdout


def _garbage(manifest: dict[str, Any], model: Path) -> None:
    _replace(manifest["variants"]["openvino"], model, b"\x08\x08 no model")


def _cut_model(manifest: dict[str, Any], model: Path) -> None:
    whole = (model / manifest["variants"]["openvino"]["file"]).read_bytes()
    _replace(manifest["variants"]["openvino"], model, whole[: len(whole) // 2])


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
    model = _copy(cpp_kit, tmp_path)
    _edit(model, lambda manifest: change(manifest, model))
    done = classify("x.jpg", model=model)
    assert done.returncode in ((MODEL, 5) if fault == "other-output" else (MODEL,))
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 1_000_000, '{"a":1,"a":2}', '{"name":"\xff"}', "nul", '{"schema_version":01}', "1e999", "{} {}"],
    ids=["empty", "open", "deep", "twice", "latin1", "word", "octal", "range", "more"],
)
def test_a_manifest_that_is_no_json_is_refused(text: str, cpp_kit: Path, classify: Classify, tmp_path: Path) -> None:
    model = _copy(cpp_kit, tmp_path)
    (model / "model.json").write_bytes(text.encode("latin-1"))
    done = classify("x.jpg", model=model)
    assert done.returncode == MODEL
    assert "is not valid JSON" in done.stderr or "is empty" in done.stderr


def test_the_cache_serves_the_same_logits_and_is_made_again_when_damaged(
    cpp_kit: Path, classify: Classify, photographs: list[Path], tmp_path: Path
) -> None:
    plain = next(path for path in photographs if path.suffix == ".ppm")

    def start(*more: str) -> tuple[bool, object]:
        found = _json(classify("--json", "--logits", *more, plain, cache=tmp_path / "cache"))
        return found["from_cache"], found["images"]

    first, images = start()
    assert not first
    assert start() == (True, images)
    (blob,) = (tmp_path / "cache").iterdir()
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    assert start() == (False, images)
    assert start() == (True, images)
    # What others may have written is not run.
    blob.chmod(0o666)
    assert start()[0] is False
    # Made for another number of threads.
    assert start("--threads", "2")[0] is False


def test_too_little_memory_is_an_error_code_and_never_a_signal(
    cpp_kit: Path, classify: Classify, photographs: list[Path]
) -> None:
    plain = next(path for path in photographs if path.suffix == ".ppm")
    codes = []
    for megabytes in (20, 60, 100, 150, 200, 300, 2000):
        size = megabytes << 20
        done = classify(plain, preexec_fn=lambda size=size: resource.setrlimit(resource.RLIMIT_AS, (size, size)))
        codes.append(done.returncode)
        # 127: the system's loader had no room for the libraries, before the program began.
        assert done.returncode in (0, 5, 6, 127), done.stderr
        assert done.returncode == 0 or done.stderr
    assert codes[0] != 0
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


def test_bench_times_the_engine_and_whole_frames(
    classify: Classify, photographs: list[Path]
) -> None:
    plain = next(path for path in photographs if path.suffix == ".ppm")
    found = _json(classify("--json", "--bench", "5", plain))["bench"]
    assert found["runs"] == 5
    assert 0 < found["engine_p50_ms"] <= found["engine_p90_ms"]
    assert 0 < found["frame_p50_ms"] <= found["frame_p90_ms"]


def test_odd_file_names_are_valid_json(classify: Classify, tmp_path: Path) -> None:
    names = [b'quote"back\\slash.jpg', b"line\nfeed.jpg", "caf\u00e9.jpg".encode(), b"latin\xe9.jpg"]
    paths = [os.fsdecode(os.fsencode(tmp_path) + b"/" + name) for name in names]
    found = _json(classify("--json", *paths), IMAGE)["images"]
    assert [Path(item["image"]).name for item in found] == [
        'quote"back\\slash.jpg',
        "line\nfeed.jpg",
        "caf\u00e9.jpg",
        "latin\ufffd.jpg",
    ]


def test_the_c_interface_and_hostile_input_tests_pass(cpp_kit: Path) -> None:
    _run(["ctest", "--test-dir", "build", "-R", "c_interface|hostile_input", "--output-on-failure"], cpp_kit)


def _openvino_logits(folder: Path, tensors: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """What the target openvino-cpu computes from the kit's model."""
    import onnx

    from edgeattn.artifact import OnnxArtifact

    model = load_model(folder)
    path = folder / model.variants["openvino"].file
    graph = Graph(onnx.load(path))
    inputs, outputs = graph.io_specs()
    artifact = OnnxArtifact(
        path, model.variants["openvino"].sha256, graph.opset, inputs, outputs, "u8", {}
    )
    target = OpenVinoCpu()
    workdir = folder.parent / "openvino-cpu"
    with target.open(target.build(artifact, workdir)) as session:
        name = model.model.output.name
        return [session.infer({model.model.input.name: x[None]})[name][0] for x in tensors]


def _copy(kit: Path, folder: Path) -> Path:
    return Path(shutil.copytree(kit / "model", folder / "model"))


def _edit(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((model / "model.json").read_text())
    change(manifest)
    (model / "model.json").write_text(json.dumps(manifest))


def _replace(entry: dict[str, Any], model: Path, data: bytes) -> None:
    (model / entry["file"]).write_bytes(data)
    entry.update(sha256=_sha256(data), size_bytes=len(data))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
