"""A report whose target is a device behind ssh: built, checked and timed there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from targets.conftest import write_model
from targets.ssh_device import SshDevice

from edgeattn.pipeline_deploy import Workload, deploy, judge_target
from edgeattn.progress import SilentProgress
from edgeattn.recipe import Accept
from edgeattn.targets import TimingPlan


def workload(folder: Path) -> Workload:
    images = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    return Workload(
        fp32=write_model(folder / "m.fp32.onnx", "fp32"),
        qdq={"s8": write_model(folder / "m.s8.onnx", "s8")},
        images=images,
        labels=None,
        reference_logits=np.random.default_rng(1).normal(size=(4, 16)).astype(np.float32),
        timing=TimingPlan(warmup_runs=1, min_runs=16, min_seconds=2.0),
    )


def test_without_a_host_the_report_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEATTN_JETSON_HOST", raising=False)
    result = deploy("jetson-ssh", workload(tmp_path), tmp_path / "out", SilentProgress()).result
    assert result.status == "unavailable"
    assert "EDGEATTN_JETSON_HOST" in (result.reason or "")


@pytest.mark.slow
def test_with_one_it_is_ok_and_the_latency_is_the_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    device = SshDevice(tmp_path)
    monkeypatch.setenv("EDGEATTN_JETSON_HOST", "device")
    monkeypatch.setenv("EDGEATTN_JETSON_SSH_CONFIG", str(device.config))
    monkeypatch.setenv("EDGEATTN_JETSON_PYTHON", sys.executable)
    monkeypatch.setenv("EDGEATTN_JETSON_RUNTIME", "ort")
    monkeypatch.setenv("EDGEATTN_JETSON_FOLDER", str(device.home))
    try:
        measured = deploy("jetson-ssh", workload(tmp_path), tmp_path / "out", SilentProgress())
    finally:
        device.close()
    result = measured.result
    assert result.status == "ok", result.error
    assert result.n == 4
    assert result.latency.int8 is not None
    assert result.latency.int8.runs == 16
    assert result.latency.int8.properties["clock"] == "perf_counter_ns around run"
    assert result.engine is not None
    assert result.engine.path.endswith(".plan")
    assert judge_target("jetson-ssh", measured, Accept(speedup_min=1e-3))[0].passed
