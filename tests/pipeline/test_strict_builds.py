"""--strict fails a build that runs less in INT8 than asked for; TensorRT for RTX tells it without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from attention_networks import SIZE, planned, quantized
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgeattn.cli import app
from edgeattn.errors import CoverageError
from edgeattn.export.artifacts import save_artifact
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_coverage import check_coverage
from edgeattn.pipeline_deploy import Measured, Workload, deploy, judge_target
from edgeattn.progress import SilentProgress
from edgeattn.recipe import Accept
from edgeattn.targets import TimingPlan, get_target


@pytest.fixture(autouse=True)
def _needs_builder() -> None:
    here = get_target("tensorrt-rtx").probe()
    if not here.can_build or here.can_run:
        pytest.skip(here.reason or "a GPU is here: what is built is for it")


def with_a_float_layer() -> tuple[onnx.ModelProto, str]:
    """Return a QDQ graph of four layers, one of them with weights that are not quantized, and its name."""
    graph = Graph(quantized("none"))
    conv = next(node for node in graph.nodes if node.op_type == "Conv")
    integers, scale = (graph.constants[name] for name in graph.producer[conv.input[1]].input[:2])
    graph.constants["float_weight"] = (integers * scale.reshape(-1, 1, 1, 1)).astype("float32")
    conv.input[1] = "float_weight"
    graph.reindex()
    graph.remove_unused()
    return graph.to_model(), conv.name


def deployed(tmp_path: Path, strict: float | None) -> Measured:
    model, _ = with_a_float_layer()
    images = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    work = Workload(
        fp32=save_artifact(planned("none")[0], tmp_path / "m.fp32.onnx", "fp32", {}),
        qdq={"s8": save_artifact(model, tmp_path / "m.s8.onnx", "s8", {})},
        images=images,
        labels=None,
        reference_logits=np.zeros((2, 10), np.float32),
        timing=TimingPlan.quick(),
    )
    return deploy("tensorrt-rtx", work, tmp_path / "out", SilentProgress(), strict=strict)


def test_a_layer_outside_int8_fails_a_strict_build_and_is_named_by_module(tmp_path: Path) -> None:
    measured = deployed(tmp_path, 1.0)
    result, name = measured.result, with_a_float_layer()[1]
    assert result.status == "failed"
    assert "75.0 % of 4 layers with weights run in INT8 for SM86; --strict wants 100.0 %" in str(result.error)
    assert f"  {'.'.join(name.split('/')[:2])} (1): {name}" in str(result.error).splitlines()
    # What was built stays in the report; the engine does not.
    assert result.build["coverage"]["int8_coverage"] == 0.75
    assert not list((tmp_path / "out").rglob("*.plan*"))
    (reason,) = judge_target("tensorrt-rtx", measured, Accept())
    assert (reason.bound, reason.passed) == ("int8_coverage_min", False)


@pytest.mark.parametrize("strict", [None, 0.75])
def test_a_build_that_meets_the_bound_goes_on(strict: float | None, tmp_path: Path) -> None:
    measured = deployed(tmp_path, strict)
    assert measured.result.status == "built", measured.result.error
    assert measured.result.agreement is not None
    assert list((tmp_path / "out").rglob("*.plan"))


def test_float32_kernels_fail_the_full_bound_only() -> None:
    coverage = {"convolutions": 4, "int8_coverage": 1.0, "not_int8": [], "float32_kernels": 1}
    build = {"coverage": {**coverage, "float32_kernel_names": ["__myl_Mean"]}}
    check_coverage("tensorrt-rtx", build, 0.99)
    with pytest.raises(CoverageError, match="__myl_Mean") as caught:
        check_coverage("tensorrt-rtx", build, 1.0)
    assert caught.value.exit_code == 4


def test_targets_that_do_not_tell_pass() -> None:
    check_coverage("ort-cpu", {"runtime": "ONNX Runtime"}, 1.0)


def own_model(path: Path) -> Path:
    """A convolution, which TensorRT for RTX does not run in INT8 for Turing, and a classifier, which it does."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(8, 3, 3, 3)).astype(np.float32) * 0.2,
        "c": random.normal(size=(10, 8)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["stem"], "/block/stem/Conv", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["stem"], ["pooled"], "/head/pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "/head/flatten"),
        helper.make_node("Gemm", ["flat", "c"], ["logits"], "/head/Gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "own",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, 3, 16, 16))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 10))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path


def strict_for_turing(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> str:
    """Run a command that passes, and again for SM75, for which TensorRT for RTX has no INT8 convolution.

    Returns:
        What the second run, which must end with code 4, says.
    """
    good = CliRunner().invoke(app, arguments)
    assert good.exit_code == 0, good.output
    monkeypatch.setattr("edgeattn.targets.tensorrt_rtx._WITHOUT_GPU", "SM75")
    low = CliRunner().invoke(app, arguments)
    assert low.exit_code == 4, low.output
    return low.output


def test_quantize_ends_with_code_4_and_says_which_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = np.random.default_rng(0).normal(size=(32, 3, 16, 16)).astype(np.float32)
    np.save(tmp_path / "samples.npy", samples)
    model = own_model(tmp_path / "own.onnx")
    arguments = [
        "quantize",
        str(model),
        "--calibration",
        str(tmp_path / "samples.npy"),
        "--tuning-steps",
        "0",
    ]
    arguments += ["--target", "tensorrt-rtx", "--out", str(tmp_path / "out"), "--strict"]
    said = strict_for_turing(monkeypatch, arguments)
    assert "Not INT8, by module:" in said
    assert "stem" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["verdict"] == "fail"
    assert report["targets"]["tensorrt-rtx"]["status"] == "failed"
    bound = CliRunner().invoke(app, [*arguments, "--int8-coverage-min", "0.5"])
    assert bound.exit_code == 0, bound.output


@pytest.mark.slow
def test_a_strict_run_for_turing_ends_with_code_4(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["run", str(repository / "recipes" / "quickstart.yaml"), "--out", str(tmp_path), "--strict"]
    for change in (
        "model.width=0.25",
        "train.epochs=1",  # without any, values vanish, and float16 does not hold them
        "quant.mode=ptq",
        "accept={}",
        "targets=[tensorrt-rtx]",
    ):
        arguments += ["--set", change]
    said = strict_for_turing(monkeypatch, arguments)
    assert "run in INT8 for SM75" in said
    assert "features.2 (" in said
