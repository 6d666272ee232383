"""A run from recipe to report: real training, real engines, resumed, and refused when tampered with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeattn import load_recipe, load_report, run_recipe
from edgeattn.errors import ArtifactError, DataError, RecipeError
from edgeattn.report import Report

QUICKER = (
    "model.width=0.1",
    "train.epochs=1",
    "quant.qat.epochs=1",
    "quant.ptq.tuning_steps=2",
    "measure.limit=40",
    "accept={}",
    "targets=[ort-cpu, openvino-cpu]",
)
# Where calibration is not what is looked at: ranges only.
RANGES = (
    *QUICKER,
    "quant.mode=ptq",
    "quant.ptq={nncf: false, importance: false, equalization: false, headroom: none, tuning_steps: 0}",
    "targets=[ort-cpu]",
)
BARE = (*RANGES, "attention={kind: none}")


class Notes:
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stages: list[str] = []

    def update(self, stage: str, done: float, total: float, **metrics: float) -> None:
        """Keep the order of stages."""
        if stage not in self.stages:
            self.stages.append(stage)

    def note(self, text: str) -> None:
        """Keep the line."""
        self.lines.append(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """One small run of the quickstart recipe."""
    out = tmp_path_factory.mktemp("run")
    recipe = load_recipe(_recipes() / "quickstart.yaml", QUICKER)
    report = run_recipe(recipe, out)
    # Now: a later test that resumes the run writes its own.
    assert load_report(out) == report
    return out, report


def _recipes() -> Path:
    return Path(__file__).parents[2] / "recipes"


def test_every_target_has_an_engine_and_figures(finished: tuple[Path, Report]) -> None:
    out, report = finished
    for name in ("ort-cpu", "openvino-cpu"):
        target = report.targets[name]
        assert target.status == "ok"
        assert target.engine is not None
        assert (out / target.engine.path).is_file()
        assert target.n == 40
        assert target.agreement is not None
        assert target.latency.int8 is not None
        assert target.latency.fp32 is not None
        assert target.speedup == pytest.approx(
            target.latency.fp32.p50_ms / target.latency.int8.p50_ms, rel=0.5
        )
        assert target.layers
        assert target.layer_times


def test_the_page_needs_no_network(finished: tuple[Path, Report]) -> None:
    out, _ = finished
    html = (out / "report.html").read_text()
    assert "ort-cpu" in html
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_both_cpu_targets_answer_alike(finished: tuple[Path, Report]) -> None:
    _, report = finished
    first, second = (report.targets[name].agreement for name in ("ort-cpu", "openvino-cpu"))
    assert first is not None
    assert second is not None
    assert abs(first - second) <= 0.1


def test_another_training_is_trained_anew(finished: tuple[Path, Report], tmp_path: Path) -> None:
    out, _ = finished
    notes = Notes()
    recipe = load_recipe(_recipes() / "quickstart.yaml", (*RANGES, "train.learning_rate=0.001"))
    state = tmp_path / "stages.json"
    state.write_bytes((out / "stages.json").read_bytes())
    report = run_recipe(recipe, tmp_path, progress=notes)
    assert "train" in notes.stages
    assert not report.stages[0].resumed


def test_a_changed_artifact_is_refused_by_name(finished: tuple[Path, Report]) -> None:
    out, _ = finished
    path = out / "plan.ptq.json"
    before = path.read_bytes()
    try:
        path.write_bytes(before.replace(b'"ptq"', b'"ptq" '))
        with pytest.raises(ArtifactError, match=r"plan\.ptq\.json was changed"):
            run_recipe(load_recipe(_recipes() / "quickstart.yaml", QUICKER), out)
    finally:
        path.write_bytes(before)


def test_qat_weights_load_into_the_float_form(finished: tuple[Path, Report]) -> None:
    from edgeattn.models import create_model, insert_attention, load_weights

    out, _ = finished
    model = insert_attention(
        create_model("mobilenet_v2", num_classes=10, width=0.1), "coord", reduction=8, identity=False
    )
    loaded = load_weights(model, out / "qat.safetensors", strict=True)
    assert loaded.complete


def test_an_unavailable_target_does_not_stop_the_others(tmp_path: Path) -> None:
    recipe = load_recipe(
        _recipes() / "quickstart.yaml",
        (
            *BARE,
            "train.epochs=0",
            "targets=[tensorrt, ort-cpu]",
        ),
    )
    report = run_recipe(recipe, tmp_path)
    if report.targets["tensorrt"].status == "unavailable":
        assert report.targets["tensorrt"].reason
    assert report.targets["ort-cpu"].status == "ok"


def test_a_missed_bound_fails_the_verdict_with_its_figure(tmp_path: Path) -> None:
    recipe = load_recipe(
        _recipes() / "quickstart.yaml", (*BARE, "train.epochs=0", "accept={float_top1_min: 1.0}")
    )
    report = run_recipe(recipe, tmp_path)
    assert report.verdict == "fail"
    (reason,) = [reason for reason in report.reasons if not reason.passed]
    assert reason.bound == "float_top1_min"
    assert reason.got == report.fp32.top1


def _command(out: Path, *settings: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "edgeattn",
        "run",
        str(_recipes() / "quickstart.yaml"),
        "--out",
        str(out),
        *(item for setting in settings for item in ("--set", setting)),
    ]


def test_ctrl_c_says_how_to_go_on_and_the_next_run_resumes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = _command(out, *BARE, "train.epochs=3")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background makes its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 90
    while not (out / "checkpoints" / "float" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again" in errors
    assert not list(out.rglob("*.part"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert "verdict: pass" in done.stdout


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk needs the right to mount one")
    try:
        command = _command(disk / "run", *RANGES, "train.epochs=0", "model.width=1.0")
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 1
        assert "disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(disk.rglob("*.part"))
    finally:
        subprocess.run(["umount", str(disk)], check=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("attention.kind=cord", "coord"),
        ("targets=[ort-gpu]", "ort-cpu"),
        ("train.epoch=3", "epochs"),
    ],
)
def test_a_mistyped_request_names_the_close_match(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(_recipes() / "quickstart.yaml", [override])


def test_calibration_images_may_not_be_measured(tmp_path: Path) -> None:
    recipe = load_recipe(
        _recipes() / "quickstart.yaml",
        (*RANGES, "data.split_seed=5", "train.epochs=0"),
    )
    with pytest.raises(DataError):
        run_recipe(recipe, tmp_path)


def test_a_second_run_repeats_no_stage_and_prints_json_only(finished: tuple[Path, Report]) -> None:
    out, report = finished
    done = subprocess.run(
        [*_command(out, *QUICKER), "--json"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["fingerprint"] == report.fingerprint
    assert {stage["name"]: stage["resumed"] for stage in printed["stages"]} == dict.fromkeys(
        ("train", "ptq", "qat"), True
    )
    assert "train  " not in done.stderr
