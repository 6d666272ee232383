"""A network whose swishes read channels of very different size: from the file to engines that agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from quant_networks import pictures, swish_block

from edgeattn.pipeline import parity_model, quantize_onnx
from edgeattn.quant.config import PtqConfig
from edgeattn.report import Report

QUICK = PtqConfig(nncf=False, tuning_steps=2, range_estimator="minmax")
ENGINES = ["reference", "ort-cpu", "openvino-cpu"]


@pytest.fixture(scope="module", params=[True, False], ids=["hard swish", "swish"])
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("swishes")
    onnx.save(swish_block(is_hard=request.param), str(folder / "block.onnx"))
    np.save(folder / "images.npy", np.concatenate(pictures(40)))
    targets = [*ENGINES, "tensorrt-rtx"]
    report = quantize_onnx(
        folder / "block.onnx", folder / "images.npy", folder / "out", targets=targets, config=QUICK
    )
    return folder, report


def test_every_engine_is_near_the_float_network(run: tuple[Path, Report]) -> None:
    _, report = run
    steps = [step["step"] for step in report.quant["ladder"] if isinstance(step, dict)]  # type: ignore[union-attr]
    assert "channel equalization through swishes: 1" in steps
    for name in ENGINES:
        assert report.targets[name].status == "ok"
        reached = report.targets[name].sqnr_db
        # Without gates by channel 19 to 23 dB are left.
        assert reached is not None and reached > 25
    assert report.targets["tensorrt-rtx"].status in ("built", "ok", "unavailable")


def test_the_float_graph_is_the_users(run: tuple[Path, Report]) -> None:
    folder, _ = run
    graph = onnx.load(str(folder / "out" / "model.fp32.onnx")).graph
    assert [node.op_type for node in graph.node].count("Conv") == 3


def test_layers_of_every_engine_only_round(run: tuple[Path, Report]) -> None:
    folder, _ = run
    found = parity_model(folder / "out", ENGINES, folder / "images.npy", limit=16, layer_images=2)
    assert found["verdict"]["passed"], found["verdict"]["reasons"]
    assert {reason["metric"] for reason in found["verdict"]["reasons"]} >= {"over_one_share"}
