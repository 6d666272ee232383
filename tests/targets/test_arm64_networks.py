"""Whole networks on emulated ARM64: the demonstration's MobileNetV2 with Coordinate Attention at 224x224."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from ssh_device import SshDevice

from edgeattn.artifact import IoSpec, OnnxArtifact, sha256_of_file
from edgeattn.data.preprocess import preprocess_image
from edgeattn.kit.deploy_files import demo_folder
from edgeattn.kit.model_folder import load_model, manifest_name
from edgeattn.measure import compare_outputs, run_session
from edgeattn.progress import SilentProgress
from edgeattn.targets import get_target
from edgeattn.targets.arm64_setup import find_environment, why_not_set_up

pytestmark = pytest.mark.slow

N = 64


@pytest.fixture(autouse=True)
def _emulation() -> None:
    reason, install = why_not_set_up()
    if reason:
        pytest.skip(f"{reason}. {install}")


@pytest.fixture(scope="module")
def photos() -> NDArray[np.float32]:
    """The demonstration's photographs, and as many mirrored as 64 need."""
    model = load_model(demo_folder())
    names = sorted(name for name in model.files if name.startswith("images/"))
    pictures = [np.asarray(Image.open(demo_folder() / name).convert("RGB")) for name in names]
    pictures += [np.ascontiguousarray(picture[:, ::-1]) for picture in pictures]
    assert len(pictures) >= N
    return np.stack([preprocess_image(picture, model.preprocess) for picture in pictures[:N]])


def demo(profile: str) -> OnnxArtifact:
    model = load_model(demo_folder() / manifest_name(profile)).model
    path = demo_folder() / model.file
    tensors = {
        f"{side}s": (IoSpec(getattr(model, side).name, tuple(getattr(model, side).shape)),)
        for side in ("input", "output")
    }
    return OnnxArtifact(path, sha256_of_file(path), model.opset, profile=profile, **tensors)


def simulated(artifact: OnnxArtifact, photos: NDArray[np.float32]) -> NDArray[np.float32]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])
    name = artifact.inputs[0].name
    return np.concatenate([session.run(None, {name: photo[None]})[0] for photo in photos])


@pytest.mark.parametrize("runtime", ["ort", "openvino"])
@pytest.mark.parametrize("profile", ["u8", "s8"])
def test_a_whole_network_decides_as_its_graph_says(
    profile: str, runtime: str, photos: NDArray[np.float32], tmp_path: Path
) -> None:
    artifact = demo(profile)
    target = get_target("arm64", runtime=runtime, profile=profile)
    engine = target.build(artifact, tmp_path)
    with target.open(engine) as session:
        logits = run_session(session, photos, artifact.inputs[0].name, artifact.outputs[0].name)
    parity = compare_outputs(simulated(artifact, photos), logits)
    assert parity.n == N
    assert parity.agreement >= 0.95
    assert parity.sqnr_db > 20


def test_the_jetson_kit_runs_on_arm64_code_behind_ssh(photos: NDArray[np.float32], tmp_path: Path) -> None:
    """What jetson-ssh starts on the device is an aarch64 Python with aarch64's ONNX Runtime."""
    device = SshDevice(tmp_path)
    python = tmp_path / "python-arm64"
    words = " ".join(f"'{word}'" for word in find_environment().command())
    python.write_text(f'#!/bin/sh\nEDGEATTN_PYTHON={python} exec {words} "$@"\n')
    python.chmod(0o755)
    artifact = demo("s8")
    try:
        target = get_target(
            "jetson-ssh",
            host="device",
            config=device.config,
            python=str(python),
            runtime="ort",
            folder=str(device.home),
            progress=SilentProgress(),
        )
        engine = target.build(artifact, tmp_path / "engine")
        assert engine.details["device"]["architecture"] == "aarch64"
        assert engine.details["runtime"].startswith("ort 1.27")
        with target.open(engine) as session:
            logits = run_session(session, photos[:8], artifact.inputs[0].name, artifact.outputs[0].name)
    finally:
        device.close()
    assert compare_outputs(simulated(artifact, photos[:8]), logits).sqnr_db > 20
