"""An engine that computes something else than its graph is told, whatever it answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from targets.conftest import write_model

from edgeattn.artifact import OnnxArtifact, sha256_of_file
from edgeattn.onnx_plain import open_plain
from edgeattn.pipeline_deploy import Measured, Workload, deploy
from edgeattn.progress import SilentProgress
from edgeattn.targets import TimingPlan, targets
from edgeattn.targets.ort_cpu import OrtCpu


class Wrong(OrtCpu):
    """ONNX Runtime behind a lowering that moves biases to other channels."""

    def lower(self, artifact: OnnxArtifact, workdir: Path) -> OnnxArtifact:
        lowered = super().lower(artifact, workdir)
        model = onnx.load(str(lowered.path))
        for item in model.graph.initializer:
            values = numpy_helper.to_array(item)
            if values.dtype in (np.float32, np.int32) and values.ndim == 1 and values.size > 1:
                item.CopyFrom(numpy_helper.from_array(np.roll(values, 1), item.name))
        onnx.save(model, str(lowered.path))
        return dataclasses.replace(lowered, sha256=sha256_of_file(lowered.path))


def measure(folder: Path) -> Measured:
    fp32 = write_model(folder / "m.fp32.onnx", "fp32")
    images = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float32)
    session = open_plain(fp32.path, "a test")
    reference = [session.run(None, {fp32.inputs[0].name: image[None]})[0] for image in images]
    work = Workload(
        fp32=fp32,
        qdq={"u8": write_model(folder / "m.u8.onnx", "u8")},
        images=images,
        labels=None,
        reference_logits=np.concatenate(reference),
        timing=TimingPlan.quick(),
    )
    return deploy("ort-cpu", work, folder / "out", SilentProgress())


def test_an_engine_that_computes_its_graph_is_not_warned_of(tmp_path: Path) -> None:
    result = measure(tmp_path).result
    assert result.status == "ok", result.error
    assert result.graph_warning is None
    assert result.graph_sqnr_db is None or result.graph_sqnr_db > 30


def test_an_engine_with_biases_of_other_channels_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(targets._entries, "ort-cpu", Wrong)
    result = measure(tmp_path).result
    assert result.status == "ok", result.error
    assert result.graph_sqnr_db is not None
    assert result.graph_sqnr_db < 20
    assert "from its own quantized graph" in (result.graph_warning or "")
