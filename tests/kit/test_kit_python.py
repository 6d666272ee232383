"""The Python kit's class and command: training's own pixels, checked files, and clear refusals."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from demo_split import DemoSplit
from PIL import Image

from edgeattn.data import Preprocess, load_image, normalize_pixels, resize_and_crop

pytest.importorskip("onnxruntime")

Runner = Callable[..., Any]


@pytest.fixture
def kit(demo_kit: Path, tmp_path: Path) -> Path:
    """A kit that may be damaged."""
    return Path(shutil.copytree(demo_kit, tmp_path / "kit"))


def change_manifest(kit: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = kit / "model" / "model.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


# ---------------------------------------------------------------------------------- self-test


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_self_test_passes_without_edgeattn(demo_kit: Path, run_kit: Runner, runtime: str) -> None:
    """Every photograph gets the same pixels and the same class, with nothing of ours installed."""
    pytest.importorskip(runtime)
    done = run_kit(demo_kit, "--self-test", "--json", "--runtime", runtime)
    result = json.loads(done.stdout)
    assert (done.returncode, result["failures"]) == (0, [])
    assert result["images"] >= 30


@pytest.mark.parametrize(
    ("key", "value"), [("interpolation", "bicubic"), ("resize", 256), ("mean", [0.5, 0.5, 0.5])]
)
def test_self_test_sees_other_preprocessing(kit: Path, run_kit: Runner, key: str, value: object) -> None:
    """A planted change of resizing or normalization fails it."""
    change_manifest(kit, lambda manifest: manifest["preprocess"].update({key: value}))
    done = run_kit(kit, "--self-test")
    assert done.returncode == 1
    assert done.stdout.rstrip().endswith("FAILED")
    assert ("other pixels" in done.stdout) == (key != "mean")


def test_self_test_sees_another_answer(kit: Path, run_kit: Runner) -> None:
    """The outputs are compared too."""
    path = kit / "model" / "reference.json"
    reference = json.loads(path.read_text())
    logits = reference["images"][3]["logits"]
    logits[0] += 2 * reference["tolerance"]
    data = json.dumps(reference).encode()
    path.write_bytes(data)
    import hashlib

    entry = {"file": "reference.json", "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    change_manifest(kit, lambda manifest: manifest.update(reference=entry))
    done = run_kit(kit, "--self-test")
    assert done.returncode == 1
    assert "0004.jpg: a logit differs" in done.stdout


# ------------------------------------------------------------------------------- preprocessing


def pictures(folder: Path) -> Iterator[bytes]:
    """Every kind of picture: modes, formats, orientations, shapes."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (61, 83, 3), dtype=np.uint8))
    photographs = [Image.open(path) for path in sorted((folder / "images").iterdir())[:4]]
    variants = [(mode, "PNG") for mode in ("RGB", "L", "P", "1", "RGBA", "LA")]
    variants += [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "BMP"), ("RGB", "TIFF")]
    variants += [("CMYK", "TIFF"), ("RGB", "WEBP"), ("P", "GIF"), ("RGB", "PPM")]
    for image in (noise, *photographs):
        for mode, form in variants:
            stream = io.BytesIO()
            image.convert(mode).save(stream, form)
            yield stream.getvalue()
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        for form in ("JPEG", "PNG"):
            stream = io.BytesIO()
            noise.save(stream, form, exif=exif)
            yield stream.getvalue()
    wide = rng.integers(0, 65536, (40, 50), dtype=np.uint16)
    stream = io.BytesIO()
    Image.fromarray(wide).save(stream, "PNG")
    yield stream.getvalue()
    transparent = noise.convert("P")
    transparent.info["transparency"] = 3
    stream = io.BytesIO()
    transparent.save(stream, "PNG", transparency=3)
    yield stream.getvalue()


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(size=224, resize=224),
        Preprocess(size=97, resize=120, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)),
        Preprocess(size=64, resize=None, interpolation="nearest"),
    ],
    ids=["demo", "odd offsets", "squash"],
)
def test_inputs_are_trainings_bit_for_bit(
    kit_module: ModuleType, demo_kit: Path, tmp_path: Path, preprocess: Preprocess
) -> None:
    """Whatever is decoded, resized, cropped and normalized."""
    preprocessor = kit_module.Preprocessor(preprocess.model_dump(mode="json"))
    for number, data in enumerate(pictures(demo_kit / "model")):
        path = tmp_path / f"{number}.image"
        path.write_bytes(data)
        rgb = load_image(path)
        decoded = kit_module.decode_image(data)
        assert np.array_equal(np.asarray(decoded), rgb), number
        expected = resize_and_crop(rgb, preprocess)
        pixels = preprocessor.pixels(decoded)
        assert np.array_equal(pixels, expected), number
        inputs = preprocessor.normalize(pixels)
        assert inputs.tobytes() == normalize_pixels(expected, preprocess).tobytes(), number


def test_hostile_images_are_refused(kit_module: ModuleType) -> None:
    """Bombs before they are decoded, and whatever is broken."""
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    with pytest.raises(kit_module.ImageTooLarge):
        kit_module.decode_image(stream.getvalue())
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "JPEG")
    good = stream.getvalue()
    for bad in (b"", b"GIF89a", good[:200], b"<svg/>", b"%!PS-Adobe", bytes(1000)):
        with pytest.raises(kit_module.ImageError):
            kit_module.decode_image(bad)
    stream = io.BytesIO()
    Image.new("RGB", (4, 400)).save(stream, "PNG")
    with pytest.raises(kit_module.ImageError, match="at least 8"):
        kit_module.decode_image(stream.getvalue())
    stream = io.BytesIO()
    frames = [Image.new("L", (9, 9), shade) for shade in (0, 255)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(kit_module.ImageError, match="several frames"):
        kit_module.decode_image(stream.getvalue())


# ----------------------------------------------------------------------------------- the folder


@pytest.mark.parametrize(
    "name", ["model.u8.onnx", "model.openvino.onnx", "reference.json", "images/0002.jpg"]
)
def test_changed_file_is_not_used(kit: Path, run_kit: Runner, name: str) -> None:
    """One flipped bit anywhere, and nothing runs."""
    path = kit / "model" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = run_kit(kit, "model/images/0001.jpg")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{name} was changed" in done.stderr


def test_path_out_of_the_folder_is_not_followed(kit: Path, kit_module: ModuleType) -> None:
    """By name or by link."""
    outside = kit / "outside.onnx"
    shutil.copy(kit / "model" / "model.u8.onnx", outside)
    change_manifest(kit, lambda manifest: manifest["model"].update(file="../outside.onnx"))
    with pytest.raises(kit_module.KitError, match="not a file inside its folder"):
        kit_module.Classifier(kit / "model")
    change_manifest(kit, lambda manifest: manifest["model"].update(file="link.onnx"))
    (kit / "model" / "link.onnx").symlink_to(outside)
    with pytest.raises(kit_module.KitError, match="leads out"):
        kit_module.Classifier(kit / "model")
    (kit / "model" / "link.onnx").unlink()
    (kit / "model" / "link.onnx").symlink_to("link.onnx")
    with pytest.raises(kit_module.KitError, match=r"cannot be checked|is missing"):
        kit_module.Classifier(kit / "model")


def test_manifest_that_is_not_valid(kit: Path, kit_module: ModuleType) -> None:
    """Each is an error in words."""
    path = kit / "model" / "model.json"
    good = path.read_text()
    for bad in ("", "[]", "{}", "null", good.replace('"schema_version": 1', '"schema_version": 2')):
        path.write_text(bad)
        with pytest.raises(kit_module.KitError):
            kit_module.Classifier(kit / "model")


# ---------------------------------------------------------------------------------- the command


def test_command_classifies(demo_kit: Path, run_kit: Runner) -> None:
    """Images in, best classes out; a bad image among good ones costs only itself."""
    done = run_kit(demo_kit, "model/images/0001.jpg", "README.md", "no.jpg", "--json", "--top", "3")
    answers = json.loads(done.stdout)
    assert done.returncode == 2
    assert [len(answer.get("top", ())) for answer in answers] == [3, 0, 0]
    assert ["error" in answer for answer in answers] == [False, True, True]
    confidences = [label["confidence"] for label in answers[0]["top"]]
    assert confidences == sorted(confidences, reverse=True)


def test_missing_runtime_is_named(demo_kit: Path, run_kit: Runner, tmp_path: Path) -> None:
    """Exit code 3, and what to install."""
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('planted')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    code += f"sys.argv[0:] = ['k', 'x.jpg']; sys.path.insert(1, {str(demo_kit)!r}); "
    code += "import edgeattn_classify; sys.exit(edgeattn_classify.main())"
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "pip install onnxruntime, or use --runtime openvino" in done.stderr


# ------------------------------------------------------------------------- the whole test split


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_every_test_image_gets_the_class_of_ort_cpu(
    demo_kit: Path, run_kit: Runner, demo_split: DemoSplit, runtime: str
) -> None:
    """On all photographs that the demonstration's network was not trained on, with nothing of ours installed."""
    pytest.importorskip(runtime)
    paths = [str(path) for path in demo_split.paths]
    done = run_kit(demo_kit, *paths, "--json", "--top", "1", "--runtime", runtime)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [answer["top"][0]["index"] for answer in json.loads(done.stdout)]
    assert demo_split.differing(answers) == []
