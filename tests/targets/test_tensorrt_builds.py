"""TensorRT for RTX builds on machines without a GPU, so its parser and builder are tested for real."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeattn.artifact import OnnxArtifact, sha256_of_file
from edgeattn.errors import ModelError, RecipeError, TargetUnavailable
from edgeattn.targets import get_target
from edgeattn.targets._cuda import GpuInfo
from edgeattn.targets._trt import LogRecord, check_signed_activations, check_warnings
from edgeattn.targets.tensorrt_full import TensorRt
from edgeattn.targets.tensorrt_rtx import TensorRtRtx


@pytest.fixture
def rtx() -> TensorRtRtx:
    target = TensorRtRtx(compute_capability="SM86")
    if not target.probe().can_build:
        pytest.skip(target.probe().reason)
    return target


def edited(artifact: OnnxArtifact, path: Path, model: onnx.ModelProto) -> OnnxArtifact:
    onnx.save(model, str(path))
    return dataclasses.replace(artifact, path=path, sha256=sha256_of_file(path))


def test_every_build_is_reported_not_only_the_first(
    rtx: TensorRtRtx, artifacts: dict[str, OnnxArtifact], tmp_path: Path
) -> None:
    """TensorRT ignores every logger but the first of a process."""
    for _ in range(2):
        details = rtx.build(artifacts["s8"], tmp_path).details
        assert details["kernels"] >= 3
        assert details["int8_convolution_share"] == 1.0
        assert details["compute_capability"] == "SM86"


def test_building_prints_nothing(
    rtx: TensorRtRtx, artifacts: dict[str, OnnxArtifact], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rtx.build(artifacts["fp32"], tmp_path)
    assert capfd.readouterr() == ("", "")


def test_an_engine_can_be_for_another_gpu(
    artifacts: dict[str, OnnxArtifact], tmp_path: Path, rtx: TensorRtRtx
) -> None:
    other = TensorRtRtx(compute_capability="SM89").build(artifacts["fp32"], tmp_path)
    assert other.details["compute_capability"] == "SM89"
    with pytest.raises(RecipeError, match="SM12"):
        TensorRtRtx(compute_capability="SM12").build(artifacts["fp32"], tmp_path)


def test_unsigned_artifacts_are_refused(
    rtx: TensorRtRtx, artifacts: dict[str, OnnxArtifact], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="profile='s8'"):
        rtx.build(artifacts["u8"], tmp_path)


def test_unsigned_graphs_are_refused_whatever_they_are_called(
    rtx: TensorRtRtx, artifacts: dict[str, OnnxArtifact], tmp_path: Path
) -> None:
    """TensorRT reads UINT8 as INT8 with a warning, and everything above 127 saturates."""
    with pytest.raises(ModelError, match="saturate"):
        rtx.build(dataclasses.replace(artifacts["u8"], profile="s8"), tmp_path)


@pytest.mark.parametrize("spelled", ["initializer", "constant", "omitted"])
def test_every_spelling_of_an_unsigned_zero_point_is_found(
    spelled: str, artifacts: dict[str, OnnxArtifact], tmp_path: Path
) -> None:
    model = onnx.load(str(artifacts["s8"].path))
    check_signed_activations(artifacts["s8"].path)
    node = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    zero = numpy_helper.from_array(np.array(0, np.uint8), "zero")
    if spelled == "omitted":
        del node.input[2]
    else:
        node.input[2] = "zero"
        if spelled == "initializer":
            model.graph.initializer.append(zero)
        else:
            model.graph.node.insert(0, helper.make_node("Constant", [], ["zero"], value=zero))
    artifact = edited(artifacts["s8"], tmp_path / "unsigned.onnx", model)
    with pytest.raises(ModelError, match="UINT8"):
        check_signed_activations(artifact.path)


def test_the_parsers_own_uint8_warning_fails_the_build(
    rtx: TensorRtRtx,
    artifacts: dict[str, OnnxArtifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second net, with the real parser: the graph check is switched off."""
    model = onnx.load(str(artifacts["u8"].path))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_zero_point"):
            tensor.CopyFrom(numpy_helper.from_array(np.array(0, np.uint8), tensor.name))
    artifact = edited(artifacts["s8"], tmp_path / "unsigned.onnx", model)
    monkeypatch.setattr("edgeattn.targets._trt.check_signed_activations", lambda path: None)
    with pytest.raises(ModelError, match="wrong numbers"):
        rtx.build(artifact, tmp_path)


def test_only_warnings_about_uint8_are_fatal() -> None:
    check_warnings([LogRecord("WARNING", "slow tactic"), LogRecord("VERBOSE", "UINT8 is a type")], "m.onnx")
    with pytest.raises(ModelError, match="Defaulting"):
        check_warnings([LogRecord("WARNING", "UINT8 zero_point ... Defaulting to INT8")], "m.onnx")


def test_parse_errors_carry_the_parsers_message(
    rtx: TensorRtRtx, artifacts: dict[str, OnnxArtifact], tmp_path: Path
) -> None:
    model = onnx.load(str(artifacts["fp32"].path))
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "NoSuchOperator", "nowhere"
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    with pytest.raises(ModelError, match="NoSuchOperator") as caught:
        rtx.build(edited(artifacts["fp32"], tmp_path / "odd.onnx", model), tmp_path)
    assert "odd.onnx" in str(caught.value)


def test_tf32_can_be_switched_off_and_is_recorded(
    rtx: TensorRtRtx, artifacts: dict[str, OnnxArtifact], tmp_path: Path
) -> None:
    assert rtx.build(artifacts["fp32"], tmp_path).details["tf32"] is True
    strict = TensorRtRtx(compute_capability="SM86", tf32=False)
    assert strict.build(artifacts["fp32"], tmp_path).details["tf32"] is False


def test_an_engine_for_another_gpu_is_not_opened(
    rtx: TensorRtRtx, artifacts: dict[str, OnnxArtifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = rtx.build(artifacts["fp32"], tmp_path)
    for module in ("_trt", "tensorrt_rtx"):
        monkeypatch.setattr(
            f"edgeattn.targets.{module}.find_gpu", lambda: GpuInfo("GPU", compute_capability=(8, 9))
        )
    with pytest.raises(TargetUnavailable, match=r"built for SM86; this GPU is SM89"), rtx.open(engine):
        pass


def test_a_gpu_that_rtx_does_not_know_can_still_build(
    rtx: TensorRtRtx, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("_trt", "tensorrt_rtx"):
        monkeypatch.setattr(
            f"edgeattn.targets.{module}.find_gpu", lambda: GpuInfo("GPU", compute_capability=(9, 0))
        )
    availability = rtx.probe()
    assert (availability.can_build, availability.can_run) == (True, False)
    assert "SM90" in availability.reason


@pytest.mark.parametrize(("version", "builds"), [("8.6.1", False), ("10.13.0", True), ("11.1.0", True)])
def test_full_tensorrt_needs_strong_typing(
    version: str, builds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Module:
        __version__ = version

    monkeypatch.setattr("edgeattn.targets._trt.find_gpu", lambda: GpuInfo("GPU", compute_capability=(8, 7)))
    target = TensorRt()
    monkeypatch.setattr(target, "_load", lambda: Module)
    assert target.probe().can_build is builds


def test_full_tensorrt_is_listed_with_its_install_command_where_it_is_absent() -> None:
    availability = get_target("tensorrt").probe()
    if availability.version:
        pytest.skip("TensorRT is installed here")
    assert availability.install == "pip install 'edgeattn[tensorrt]'"
