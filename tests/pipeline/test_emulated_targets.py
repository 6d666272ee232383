"""A target that is emulated is measured by its answers alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from targets.conftest import write_model

from edgeattn.errors import TargetUnavailable
from edgeattn.pipeline_deploy import Workload, deploy, judge_target
from edgeattn.progress import SilentProgress
from edgeattn.recipe import Accept
from edgeattn.targets import TimingPlan, targets
from edgeattn.targets.ort_cpu import OrtCpu, _OrtSession


class Emulated(OrtCpu):
    """ONNX Runtime, as if it were emulated."""

    emulated = True


def test_its_report_has_accuracy_and_no_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(targets._entries, "ort-cpu", Emulated)

    def refuse(self: object, *args: object) -> None:
        raise TargetUnavailable("emulated")

    monkeypatch.setattr(_OrtSession, "time", refuse)
    images = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float32)
    work = Workload(
        fp32=write_model(tmp_path / "m.fp32.onnx", "fp32"),
        qdq={"u8": write_model(tmp_path / "m.u8.onnx", "u8")},
        images=images,
        labels=None,
        reference_logits=np.random.default_rng(1).normal(size=(6, 16)).astype(np.float32),
        timing=TimingPlan.quick(),
    )
    measured = deploy("ort-cpu", work, tmp_path / "out", SilentProgress())
    assert measured.result.status == "ok", measured.result.error
    assert measured.result.n == 6
    assert measured.result.agreement is not None
    assert measured.result.latency.int8 is None
    assert measured.result.speedup is None
    assert "emulated" in (measured.result.reason or "")
    # A bound on speed is about targets that were timed.
    assert judge_target("ort-cpu", measured, Accept(speedup_min=9.0)) == []
