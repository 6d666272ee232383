"""The C++ kit built in other ways: with sanitizers, without image libraries, and for ARM under emulation."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cpp_kit_tools import build, need, run_checked
from PIL import Image

from edgeattn.data import load_image, preprocess_image
from edgeattn.errors import EdgeAttnError
from edgeattn.export.artifacts import save_artifact
from edgeattn.kit.model_folder import load_model, load_reference
from edgeattn.kit.spec import ReferenceImage
from edgeattn.kit.write import write_kit
from edgeattn.measure.statistics import sqnr_db
from edgeattn.targets import get_target
from edgeattn.targets.arm64_setup import find_environment, why_not_set_up

OPENVINO_ARM64 = "EDGEATTN_OPENVINO_ARM64"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("cmake", "c++")
    folder = tmp_path_factory.mktemp("cpp-builds") / "kit"
    write_kit("cpp", None, folder)
    return folder


def test_no_sanitizer_complains_about_good_or_hostile_input(kit: Path) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'edgeattn[openvino]'")
    build(kit, "build-asan", "-DEAK_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug")
    run_checked(
        [
            "ctest",
            "--test-dir",
            "build-asan",
            "-R",
            "c_interface|hostile_input|sha256_same",
            "--output-on-failure",
        ],
        kit,
    )


@pytest.mark.slow
def test_without_image_libraries_it_reads_ppm_and_says_why_it_refuses_jpeg(kit: Path) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'edgeattn[openvino]'")
    built = build(
        kit,
        "build-plain",
        "-DCMAKE_DISABLE_FIND_PACKAGE_JPEG=ON",
        "-DCMAKE_DISABLE_FIND_PACKAGE_PNG=ON",
        "-DEAK_TESTS=OFF",
    )
    photograph = kit / "model" / "images" / "0001.jpg"
    Image.open(photograph).convert("RGB").save(kit / "0001.ppm")
    command = [str(built / "edgeattn-classify"), "--model", str(kit / "model"), "--json", "--logits"]
    done = subprocess.run(
        [*command, str(kit / "0001.ppm"), str(photograph)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    ppm, jpeg = json.loads(done.stdout)["images"]
    expected = load_reference(kit / "model", load_model(kit / "model")).images[0]
    assert ppm["pixels_sha256"] == expected.pixels_sha256
    assert "built without libjpeg" in jpeg["error"]


def test_for_arm_it_gives_the_shipped_answers_under_emulation(kit: Path) -> None:
    need("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64-static")
    wheel = _openvino_for_arm()
    toolchain = "-DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake"
    built = build(kit, "build-arm64", toolchain, "-DEAK_TESTS=OFF", openvino=f"{wheel}/openvino/cmake")
    reference = load_reference(kit / "model", load_model(kit / "model"))
    images = reference.images[:: max(1, len(reference.images) // 4)]
    pictures = []
    for number, image in enumerate(images):
        pictures.append(str(kit / f"arm{number}.ppm"))
        Image.open(kit / "model" / image.file).convert("RGB").save(pictures[-1])
    arguments = ["--model", "model", "--json", "--logits", *pictures]
    emulator = ["qemu-aarch64-static", "-cpu", "neoverse-n1", "-L", "/usr/aarch64-linux-gnu"]
    answers = json.loads(run_checked([*emulator, str(built / "edgeattn-classify"), *arguments], kit))[
        "images"
    ]
    for expected, arm in zip(images, answers, strict=True):
        assert arm["pixels_sha256"] == expected.pixels_sha256
        assert arm["top"][0]["index"] == expected.top1
        # Of ONNX Runtime on another processor, and not on exact grids: the same but for the rounding of single steps.
        logits = np.asarray(expected.logits)
        assert sqnr_db(logits, np.asarray(arm["logits"])) > 20
    if why_not_set_up()[0]:
        return  # only a wheel was named: there is no Python for ARM to ask
    for arm, same in zip(answers, _answers_of_the_target(kit / "model", images, kit), strict=True):
        np.testing.assert_allclose(np.float32(arm["logits"]), same, rtol=1e-6, atol=1e-6)


def _answers_of_the_target(model_folder: Path, images: Sequence[ReferenceImage], folder: Path) -> list[Any]:
    """Return the logits of OpenVINO's build for ARM, asked from Python with the same file and photographs."""
    model = load_model(model_folder)
    target = get_target("arm64", runtime="openvino")
    variant = onnx.load(str(model_folder / model.variants["openvino"].file))
    engine = target.build(save_artifact(variant, folder / "arm.onnx", "u8"), folder / "arm")
    with target.open(engine) as session:
        return [
            session.infer({model.model.input.name: preprocess_image(rgb, model.preprocess)[None]})[
                model.model.output.name
            ][0]
            for rgb in (load_image(model_folder / image.file) for image in images)
        ]


def _openvino_for_arm() -> Path:
    """Return the folder of OpenVINO's unpacked wheel for ARM: a named one, or that of `edgeattn setup arm64`."""
    named = os.environ.get(OPENVINO_ARM64)
    try:
        wheel = Path(named) if named else find_environment().folder / "site"
    except EdgeAttnError as exc:
        pytest.skip(
            f"needs OpenVINO's wheel for ARM: {exc} Or unpack it and set {OPENVINO_ARM64} to its folder."
        )
    if not (wheel / "openvino" / "cmake").is_dir():
        pytest.skip(f"{wheel} holds no unpacked wheel of OpenVINO for ARM")
    return wheel
