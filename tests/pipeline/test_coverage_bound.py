"""A recipe's bound on INT8 coverage, and tuning by kernels where no GPU is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_samples import make_report

from edgeattn import load_recipe
from edgeattn.attention import attentions
from edgeattn.cli_output import report_text
from edgeattn.pipeline_deploy import Measured, judge_target
from edgeattn.pipeline_tune import tune
from edgeattn.pipeline_tune_store import TuningStore
from edgeattn.recipe import Accept
from edgeattn.report import TargetResult
from edgeattn.report_coverage import coverage_rows
from edgeattn.report_html import render_html
from edgeattn.targets import get_target

MODULE = {
    "module": "features.<9>",
    "kernels": 3,
    "int8": 1,
    "float16": 1,
    "float32": 1,
    "reformats": 0,
    "bytes_moved": 2048,
}


def coverage(**changes: Any) -> dict[str, Any]:
    return {
        "convolutions": 4,
        "int8_coverage": 1.0,
        "not_int8": [],
        "float32_kernels": 0,
        "float32_kernel_names": [],
        "gates": 1,
        "kernels_per_gate": 2.0,
        "reformats_per_gate": 0.0,
        "bytes_moved": 2048,
        "modules": [MODULE],
        **changes,
    }


def judged(bound: float | None, **changes: Any) -> list[tuple[bool, str]]:
    result = TargetResult(
        status="built", reason="no GPU", profile="s8", build={"coverage": coverage(**changes)}
    )
    reasons = judge_target("tensorrt-rtx", Measured(result), Accept(int8_coverage_min=bound))
    return [(item.passed, item.text) for item in reasons if item.bound == "int8_coverage_min"]


def test_full_coverage_meets_the_bound() -> None:
    ((passed, text),) = judged(1.0)
    assert passed
    assert "100.0 % of 4" in text


def test_coverage_below_the_bound_names_the_layers() -> None:
    ((passed, text),) = judged(0.9, int8_coverage=0.75, not_int8=["features/3/conv"])
    assert not passed
    assert "features/3/conv" in text
    ((passed, _),) = judged(0.75, int8_coverage=0.75, not_int8=["features/3/conv"])
    assert passed


def test_the_full_bound_forbids_float32_kernels_too() -> None:
    float32 = {"float32_kernels": 1, "float32_kernel_names": ["__myl_Mean"]}
    ((passed, text),) = judged(1.0, **float32)
    assert not passed
    assert "__myl_Mean" in text
    assert judged(0.99, **float32)[0][0]


def test_targets_that_do_not_tell_are_not_judged() -> None:
    assert judged(None) == []
    result = TargetResult(status="built", reason="no GPU", profile="s8", build={})
    assert judge_target("x", Measured(result), Accept(int8_coverage_min=1.0)) == []


def test_the_report_says_on_which_device_a_target_ran_and_with_what() -> None:
    """A figure of ONNX Runtime on a PC must not be read as one of TensorRT on a Jetson."""
    report = make_report()
    build = next(iter(report.targets.values())).build
    files = Path("report.json"), Path("report.html")
    assert "ran on" not in report_text(report, *files)
    build |= {"runtime": "ort 1.31.1", "device": {"architecture": "x86_64"}}
    said = "ran on no known Jetson (x86_64), with ort 1.31.1, so without TensorRT"
    assert said in report_text(report, *files)
    assert said in render_html(report)
    build |= {"runtime": "tensorrt 10.3.0", "device": {"model": "NVIDIA <Orin>", "jetpack": "6.2"}}
    assert "ran on NVIDIA <Orin>, JetPack 6.2, with tensorrt 10.3.0\n" in report_text(report, *files)
    assert "NVIDIA &lt;Orin&gt;" in render_html(report)


def test_the_table_stands_in_the_page_and_on_the_terminal() -> None:
    report = make_report()
    next(iter(report.targets.values())).build["coverage"] = coverage()
    assert "features.&lt;9&gt;" in render_html(report)
    ((_, sentence, rows),) = coverage_rows(report)
    assert "100.0 % of 4 layers in INT8" in sentence
    assert rows[0][1:] == ("3", "1", "1", "1", "", "2")
    assert "features.<9>" in report_text(report, Path("report.json"), Path("report.html"))
    assert coverage_rows(make_report()) == []


@pytest.mark.slow
def test_forms_are_ranked_by_kernels_where_nothing_can_run(tmp_path: Path) -> None:
    here = get_target("tensorrt-rtx").probe()
    if here.can_run or not here.can_build:
        pytest.skip(here.reason or "a GPU is here: forms are timed")
    overrides = ["model.width=0.25", "targets=[tensorrt-rtx]", "quant.mode=ptq", "accept={}"]
    overrides += ["attention.kind=coord", "train.epochs=0", "tune={policies: [int8]}"]
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "quickstart.yaml", overrides)
    tuning = tune(recipe, store=TuningStore(tmp_path))
    assert tuning.forms == {"coord": "joint_mean"}
    assert all(item.latency_ms is None and item.kernels for item in tuning.candidates)
    start, *others = tuning.candidates
    assert (start.forms, start.kept) == ({"coord": "joint_mean"}, True)
    worse = {item.forms["coord"]: item.ratio for item in others}
    assert set(worse) == set(attentions.get("coord").edge_forms) - {"joint_mean"}
    assert all(ratio > 1 for ratio in worse.values())
