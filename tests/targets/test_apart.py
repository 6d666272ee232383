"""A runtime that crashes over a graph ends the process that builds, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeattn.artifact import OnnxArtifact
from edgeattn.errors import ModelError
from edgeattn.export.artifacts import save_artifact
from edgeattn.targets import Target, get_target, load_engine
from edgeattn.targets.apart import build_apart


@pytest.fixture
def openvino() -> Target:
    target = get_target("openvino-cpu")
    if not target.probe().can_build:
        pytest.skip(target.probe().reason)
    return target


def joined_maps(*, shifted: bool) -> onnx.ModelProto:
    """Two quantized maps, joined and quantized again. Added to a number, OpenVINO 2026.4 crashes over them."""
    nodes, constants = [], {"z": np.uint8(100), "number": np.float32(3)}

    def pair(source: str, name: str, scale: float) -> str:
        constants[f"{name}.s"] = np.float32(scale)
        nodes.append(helper.make_node("QuantizeLinear", [source, f"{name}.s", "z"], [f"{name}.q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", f"{name}.s", "z"], [name]))
        return name

    nodes.append(helper.make_node("Concat", [pair("x", "a", 0.05), pair("y", "b", 0.02)], ["c"], axis=1))
    last = pair("c", "d", 0.05)
    if shifted:
        nodes.append(helper.make_node("Add", [last, "number"], ["t"]))
        last = pair("t", "e", 0.06)
    nodes.append(helper.make_node("Identity", [last], ["result"]))
    graph = helper.make_graph(
        nodes,
        "joined",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 8, 8, 8)) for name in ("x", "y")],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, (1, 16, 8, 8))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def artifact_of(model: onnx.ModelProto, folder: Path) -> OnnxArtifact:
    return save_artifact(model, folder / "model.onnx", "u8")


def test_an_engine_that_was_built_apart_is_the_engine(openvino: Target, tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    engine = build_apart(openvino, artifact_of(joined_maps(shifted=False), tmp_path), tmp_path / "engine")
    assert load_engine(engine.path) == engine
    assert "timed_kernels" in engine.details
    image = np.ones((1, 8, 8, 8), np.float32)
    with openvino.open(engine) as session:
        result = session.infer({"x": image, "y": -image})["result"]
    np.testing.assert_allclose(result[0, [0, 8], 0, 0], [1, -1], atol=0.05)


def test_a_crash_is_an_error_that_names_the_signal_and_the_graph(openvino: Target, tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    with pytest.raises(ModelError, match=r"openvino-cpu .* crashed .*\(SIGSEGV\).*model\.onnx"):
        build_apart(openvino, artifact_of(joined_maps(shifted=True), tmp_path), tmp_path / "engine")
    assert not list((tmp_path / "engine").glob("*.json"))


def test_a_refusal_comes_back_as_it_was_said(openvino: Target, tmp_path: Path) -> None:
    artifact = artifact_of(joined_maps(shifted=False), tmp_path)
    artifact.path.write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        build_apart(openvino, artifact, tmp_path)
