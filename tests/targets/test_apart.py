"""A runtime that crashes over a graph ends the process that builds, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from crashing_graph import joined_maps

from edgeattn.artifact import OnnxArtifact
from edgeattn.errors import ModelError
from edgeattn.export.artifacts import save_artifact
from edgeattn.targets import Target, get_target
from edgeattn.targets.apart import build_apart


@pytest.fixture
def openvino() -> Target:
    target = get_target("openvino-cpu")
    if not target.probe().can_build:
        pytest.skip(target.probe().reason)
    return target


def artifact_of(model: onnx.ModelProto, folder: Path) -> OnnxArtifact:
    return save_artifact(model, folder / "model.onnx", "u8")


def test_an_engine_that_was_built_apart_is_the_engine(openvino: Target, tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    engine = build_apart(openvino, artifact_of(joined_maps(shifted=False), tmp_path), tmp_path / "engine")
    assert not list((tmp_path / "engine").glob("*.json")), "the manifest is for who takes the engine to write"
    assert "timed_kernels" in engine.details
    image = np.ones((1, 8, 8, 8), np.float32)
    with openvino.open(engine) as session:
        result = session.infer({"x": image, "y": -image})["result"]
    np.testing.assert_allclose(result[0, [0, 8], 0, 0], [1, -1], atol=0.05)


def test_a_crash_is_an_error_that_names_the_signal_and_the_graph(openvino: Target, tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    with pytest.raises(ModelError, match=r"openvino-cpu .* crashed .*\(SIGSEGV\).*model\.onnx"):
        build_apart(openvino, artifact_of(joined_maps(shifted=True), tmp_path), tmp_path / "engine")


def test_a_refusal_comes_back_as_it_was_said(openvino: Target, tmp_path: Path) -> None:
    artifact = artifact_of(joined_maps(shifted=False), tmp_path)
    artifact.path.write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        build_apart(openvino, artifact, tmp_path)
