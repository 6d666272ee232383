"""The C++ kit is built as its README says, sees the same pixels as training, and computes the same logits."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from cpp_kit_tools import Classify, copy_model, edit_manifest, read_output, replace_file, run_checked, sha256
from demo_split import DemoSplit
from numpy.typing import NDArray

from edgeattn.artifact import OnnxArtifact
from edgeattn.data.images import load_image
from edgeattn.data.preprocess import preprocess_image, resize_and_crop
from edgeattn.data.spec import Preprocess
from edgeattn.kit.model_folder import load_model, load_reference
from edgeattn.kit.write import write_kit
from edgeattn.onnx_graph import Graph
from edgeattn.targets.openvino_cpu import OpenVinoCpu

SELF_TEST = 7


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
    found = read_output(
        classify("--json", "--logits", "--top", "1", *(folder / i.file for i in reference.images))
    )
    images = [load_image(folder / image.file) for image in reference.images]
    expected = _openvino_logits(folder, [preprocess_image(image, model.preprocess) for image in images])
    for image, logits, got in zip(reference.images, expected, found["images"], strict=True):
        assert got["pixels_sha256"] == image.pixels_sha256
        np.testing.assert_array_equal(np.float32(got["logits"]), logits)
        assert got["top"][0]["index"] == int(logits.argmax())
        assert got["top"][0]["class"] == model.classes[int(logits.argmax())]


def test_somebodys_own_model_passes_without_known_classes(
    own_model: Path, classify: Classify, with_codecs: None, tmp_path: Path
) -> None:
    write_kit("cpp", own_model, tmp_path / "kit")
    passed = classify("--self-test", model=tmp_path / "kit" / "model")
    assert passed.returncode == 0, passed.stderr
    assert "self-test passed" in passed.stdout
    assert "right" not in passed.stdout
    found = json.loads(classify("--self-test", "--json", model=tmp_path / "kit" / "model").stdout)
    assert found["self_test"]["correct"] == -1


@pytest.mark.slow
def test_every_test_image_gets_the_class_of_ort_cpu(
    classify: Classify, with_codecs: None, demo_split: DemoSplit
) -> None:
    """On all photographs that the demonstration's network was not trained on."""
    found = read_output(classify("--json", "--top", "1", *demo_split.paths))["images"]
    assert demo_split.differing([image["top"][0]["index"] for image in found]) == []


def test_the_self_test_passes_if_and_only_if_openvino_agrees_with_ort_cpu_within_the_tolerance(
    cpp_kit: Path, classify: Classify, with_codecs: None
) -> None:
    folder = cpp_kit / "model"
    model = load_model(folder)
    reference = load_reference(folder, model)
    logits = _openvino_logits(
        folder, [preprocess_image(load_image(folder / i.file), model.preprocess) for i in reference.images]
    )
    off = [
        float(np.abs(a - np.float32(i.logits)).max()) for a, i in zip(logits, reference.images, strict=True)
    ]
    same = sum(int(a.argmax()) == i.top1 for a, i in zip(logits, reference.images, strict=True))
    passes = max(off) <= reference.tolerance and same == len(off)
    found = read_output(classify("--json", "--self-test"), 0 if passes else SELF_TEST)["self_test"]
    assert found["passed"] is passes
    assert (found["images"], found["same_pixels"], found["same_top1"]) == (len(off), len(off), same)
    assert found["max_logit_difference"] == pytest.approx(max(off), rel=1e-6)


def test_the_self_test_finds_a_wrong_expectation(
    cpp_kit: Path, classify: Classify, with_codecs: None, tmp_path: Path
) -> None:
    model = copy_model(cpp_kit, tmp_path)
    reference = json.loads((model / "reference.json").read_text())
    reference["tolerance"] = 1e6
    reference["images"] = reference["images"][:1]
    reference["images"][0]["pixels_sha256"] = "0" * 64
    edit_manifest(
        model, lambda manifest: replace_file(manifest["reference"], model, json.dumps(reference).encode())
    )
    done = classify("--self-test", model=model)
    assert done.returncode == SELF_TEST
    assert reference["images"][0]["file"] + " has other pixels" in done.stderr


PREPROCESSES = [
    Preprocess(size=224, resize=256),
    Preprocess(size=224, resize=None, interpolation="bicubic"),
    Preprocess(size=224, resize=225, interpolation="bicubic"),
    Preprocess(size=224, resize=257, interpolation="nearest"),
    Preprocess(size=224, resize=224, interpolation="bilinear"),
]


@pytest.mark.parametrize("preprocess", PREPROCESSES, ids=lambda p: f"{p.interpolation}-{p.resize}")
def test_decoding_and_resizing_give_the_bytes_that_pillow_gives(
    preprocess: Preprocess,
    cpp_kit: Path,
    classify: Classify,
    with_codecs: None,
    photographs: list[Path],
    tmp_path: Path,
) -> None:
    model = copy_model(cpp_kit, tmp_path)
    edit_manifest(model, lambda manifest: manifest.update(preprocess=preprocess.model_dump(mode="json")))
    found = read_output(classify("--json", "--logits", *photographs, model=model))["images"]
    different = [
        path.name
        for path, got in zip(photographs, found, strict=True)
        if got["pixels_sha256"] != sha256(resize_and_crop(load_image(path), preprocess).tobytes())
    ]
    assert different == []


def test_normalization_is_float32_as_in_training(
    cpp_kit: Path, classify: Classify, photographs: list[Path], tmp_path: Path
) -> None:
    model = copy_model(cpp_kit, tmp_path)
    preprocess = Preprocess(size=224, resize=None, mean=(0.1, 0.7, 1 / 3), std=(0.3, 1.7, 0.013))
    edit_manifest(model, lambda manifest: manifest.update(preprocess=preprocess.model_dump(mode="json")))
    plain = [path for path in photographs if path.suffix == ".ppm"]
    found = read_output(classify("--json", "--logits", *plain, model=model))["images"]
    expected = _openvino_logits(model, [preprocess_image(load_image(path), preprocess) for path in plain])
    for got, logits in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.float32(got["logits"]), logits)


def test_the_cache_serves_the_same_logits_and_is_made_again_when_damaged(
    cpp_kit: Path, classify: Classify, photographs: list[Path], tmp_path: Path
) -> None:
    plain = next(path for path in photographs if path.suffix == ".ppm")

    def start(*more: str) -> tuple[bool, object]:
        found = read_output(classify("--json", "--logits", *more, plain, cache=tmp_path / "cache"))
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


def test_the_cache_is_the_users_unless_it_is_named_or_refused(
    cpp_kit: Path, photographs: list[Path], tmp_path: Path
) -> None:
    plain = next(path for path in photographs if path.suffix == ".ppm")

    def cached(home: dict[str, str], *more: str) -> bool:
        command = [str(cpp_kit / "build/edgeattn-classify"), "--model", str(cpp_kit / "model"), "--json"]
        done = subprocess.run(
            [*command, *more, str(plain)], capture_output=True, text=True, check=True, env=home, timeout=120
        )
        return bool(json.loads(done.stdout)["from_cache"])

    home = {"HOME": str(tmp_path)}
    assert not cached(home, "--no-cache")
    assert list(tmp_path.iterdir()) == []
    assert not cached(home)
    assert [path.suffix for path in (tmp_path / ".cache/edgeattn-kit").iterdir()] == [".blob"]
    assert cached(home)
    assert not cached(home | {"XDG_CACHE_HOME": str(tmp_path / "other")})
    assert not cached(home, "--cache", str(tmp_path / "third"))
    assert not cached({})


def test_bench_times_the_engine_and_whole_frames(classify: Classify, photographs: list[Path]) -> None:
    plain = next(path for path in photographs if path.suffix == ".ppm")
    found = read_output(classify("--json", "--bench", "5", plain))["bench"]
    assert found["runs"] == 5
    assert 0 < found["engine_p50_ms"] <= found["engine_p90_ms"]
    assert 0 < found["frame_p50_ms"] <= found["frame_p90_ms"]


def test_the_c_interface_and_hostile_input_tests_pass(cpp_kit: Path) -> None:
    run_checked(
        [
            "ctest",
            "--test-dir",
            "build",
            "-R",
            "c_interface|hostile_input|sha256_same",
            "--output-on-failure",
        ],
        cpp_kit,
    )


def _openvino_logits(folder: Path, tensors: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """What the target openvino-cpu computes from the kit's model."""
    model = load_model(folder)
    path = folder / model.variants["openvino"].file
    graph = Graph(onnx.load(path))
    inputs, outputs = graph.io_specs()
    artifact = OnnxArtifact(path, model.variants["openvino"].sha256, graph.opset, inputs, outputs, "u8", {})
    target = OpenVinoCpu()
    workdir = folder.parent / "openvino-cpu"
    with target.open(target.build(artifact, workdir)) as session:
        name = model.model.output.name
        return [session.infer({model.model.input.name: x[None]})[name][0] for x in tensors]
