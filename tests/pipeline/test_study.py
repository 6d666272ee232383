"""A study in small: real networks, trained, quantized and counted; interrupted, resumed, and kept from mixing."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from edgeattn.cli import app
from edgeattn.errors import ArtifactError, RecipeError
from edgeattn.pipeline_study import StudyOutcome, run_study
from edgeattn.report_study import MODES, load_results, save_results

RECIPE = """
name: tiny
model: {arch: mobilenet_v2, width: 0.1}
data: {kind: image_folder, root: images, preprocess: {size: 32, resize: 32}}
train: {epochs: 2, batch_size: 16, learning_rate: 4.0e-3}
calibration: calibration.yaml
quant:
  mode: qat
  ptq: {nncf: false, importance: false, headroom: none, tuning_steps: 2}
  qat: {epochs: 1, batch_size: 16, warmup_epochs: 0, freeze_batch_norm: true}
targets: [ort-cpu]
"""
PLAN = """
title: A study in small
attentions: [none]
seeds: %d
blocks:
  - data: shades
    network: tiny
    recipe: recipe.yaml
    changes: [train.epochs=%d]
    images: {archive: shades.zip, train_per_class: 16, test_per_class: 6}
    minutes: 0.5
"""


class Notes:
    """Keeps what a study says, and stops it where a stage begins, as a key press would."""

    def __init__(self, stop_at: str = "") -> None:
        self.lines: list[str] = []
        self.stages: list[str] = []
        self._stop_at = stop_at

    def update(self, stage: str, done: float, total: float, **metrics: float) -> None:
        """Keep the order of stages."""
        self.stages.append(stage)
        if stage == self._stop_at:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        """Keep the line."""
        self.lines.append(text)


def write_plan(folder: Path, *, seeds: int = 1, epochs: int = 1) -> Path:
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "calibration.yaml").write_text("{name: tiny, split: train, count: 16, seed: 0}")
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "shades.zip", "w") as opened:
        for split, count in (("train", 20), ("test", 8)):
            for label, name in enumerate(("dark", "light")):
                for index in range(count):
                    pixels = rng.integers(120 * label, 120 * label + 90, (32, 32, 3), dtype=np.uint8)
                    stream = io.BytesIO()
                    Image.fromarray(pixels).save(stream, "png")
                    opened.writestr(f"{split}/{name}/{index:03d}.png", stream.getvalue())
    plan = folder / "plan.yaml"
    plan.write_text(PLAN % (seeds, epochs))
    return plan


@pytest.fixture(scope="module")
def interrupted(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path, StudyOutcome, Notes, list[str]]:
    """A study that was stopped when QAT began, and goes on."""
    folder = tmp_path_factory.mktemp("study")
    plan, out = write_plan(folder), folder / "out"
    with pytest.raises(KeyboardInterrupt):
        run_study(plan, out, progress=Notes("qat"), cache=folder / "cache")
    runs = sorted(path.name for path in (out / "runs").iterdir() if path.is_dir())
    notes = Notes()
    outcome = run_study(plan, out, progress=notes, cache=folder / "cache")
    return plan, out, outcome, notes, runs


Interrupted = tuple[Path, Path, StudyOutcome, Notes, list[str]]


def test_a_stopped_study_goes_on_where_it_was(interrupted: Interrupted) -> None:
    _, _, outcome, notes, runs = interrupted
    assert runs == ["shades_tiny_none_0"]
    assert outcome.new == 1
    taken = [line.partition(":")[0] for line in notes.lines if line.endswith("taken from an earlier run")]
    # The float network was trained, PTQ measured, and QAT's calibration done.
    assert taken == ["measure ptq", "train", "ptq"]
    assert "train" not in notes.stages
    assert "qat" in notes.stages
    assert (outcome.left, outcome.failed) == ({}, {})


def test_a_cell_is_measured_in_every_mode_on_the_images_of_the_plan(interrupted: Interrupted) -> None:
    _, out, _, _, _ = interrupted
    for cell in load_results(out).cells:
        assert set(cell.top1) == set(MODES)
        # Of 12 images, each counts 1/12.
        assert all(top1 * 12 == pytest.approx(round(top1 * 12)) for top1 in cell.top1.values())
        assert (cell.train_images, cell.test_images, cell.epochs, cell.qat_epochs) == (32, 12, 1, 1)
        assert cell.ptq_tuning_steps == 2
        assert cell.seconds > 0


def test_the_runs_of_finished_cells_are_removed(interrupted: Interrupted) -> None:
    _, out, _, _, _ = interrupted
    assert [path for path in (out / "runs").iterdir() if path.is_dir()] == []


def test_a_finished_study_runs_nothing(interrupted: Interrupted) -> None:
    plan, out, _, _, _ = interrupted
    notes = Notes()
    assert run_study(plan, out, progress=notes).new == 0
    assert set(notes.stages) == {"cells"}


def test_a_budget_too_small_for_a_cell_begins_none_and_says_what_is_left(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, seeds=2)
    outcome = run_study(plan, tmp_path / "out", budget=29, cache=tmp_path / "cache")
    assert (outcome.new, outcome.left, outcome.seconds_left) == (0, {"shades tiny": 2}, 60)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("minutes: 0.5", "edge_forms: {coord: joint_men}\n    minutes: 0.5", "no edge form 'joint_men'"),
        ("recipe.yaml", "no-such-recipe.yaml", "no-such-recipe"),
    ],
)
def test_what_is_wrong_with_a_later_network_is_said_before_the_first(
    right: str, wrong: str, message: str, tmp_path: Path
) -> None:
    plan = write_plan(tmp_path)
    text = plan.read_text().replace("[none]", "[none, coord]")
    later = text.split("blocks:\n")[1].replace("network: tiny", "network: later").replace(right, wrong)
    plan.write_text(text + later)
    notes = Notes()
    with pytest.raises(RecipeError, match=f"plan.yaml, block shades later, .*{message}"):
        run_study(plan, tmp_path / "out", progress=notes, cache=tmp_path / "cache")
    assert not notes.stages
    assert not (tmp_path / "out").exists()


def test_results_of_another_schedule_are_refused_or_dropped(interrupted: Interrupted, tmp_path: Path) -> None:
    _, out, _, _, _ = interrupted
    save_results(load_results(out), tmp_path / "out")
    changed = write_plan(tmp_path, epochs=2)
    with pytest.raises(RecipeError, match=r"1 of 1 results .* another schedule.*--again"):
        run_study(changed, tmp_path / "out", cache=tmp_path / "cache")
    assert len(load_results(tmp_path / "out").cells) == 1
    # The time is too short for a cell: what was dropped stays dropped, and nothing else happens.
    outcome = run_study(changed, tmp_path / "out", again=True, budget=1, cache=tmp_path / "cache")
    assert outcome.left == {"shades tiny": 1}
    assert load_results(tmp_path / "out").cells == []
    # The same schedule, named otherwise, is no other one.
    save_results(load_results(out), tmp_path / "out")
    assert run_study(write_plan(tmp_path), tmp_path / "out", budget=1).left == {}


@pytest.mark.slow
def test_other_images_are_noticed(interrupted: Interrupted, tmp_path: Path) -> None:
    _, out, _, _, _ = interrupted
    results = load_results(out)
    results.cells = [cell.model_copy(update={"data_sha256": "0" * 16}) for cell in results.cells]
    save_results(results, tmp_path / "out")
    with pytest.raises(ArtifactError, match="images of shades are not those of the results"):
        run_study(write_plan(tmp_path, seeds=2), tmp_path / "out", cache=tmp_path / "cache")
    assert [cell.seed for cell in load_results(tmp_path / "out").cells] == [0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_two_studies_never_work_on_the_same_results(tmp_path: Path) -> None:
    import fcntl

    plan = write_plan(tmp_path)
    (tmp_path / "out/runs").mkdir(parents=True)
    with (tmp_path / "out/runs/lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match="Another study works"):
            run_study(plan, tmp_path / "out", budget=1)


def test_the_command_writes_the_page_and_prints_json(interrupted: Interrupted) -> None:
    plan, out, _, _, _ = interrupted
    arguments = ["study", str(plan), "--out", str(out), "--budget", "0s"]
    printed = CliRunner().invoke(app, [*arguments, "--json"])
    assert printed.exit_code == 0, printed.output
    value = json.loads(printed.stdout)
    assert (value["new"], value["left"], len(value["cells"])) == (0, {}, 1)
    assert (out / "shades_tiny.svg").is_file()
    page = (out / "study.md").read_text()
    assert "32 training and 12 test images; 1 epoch, QAT 1 more; 1 seed." in page
    shown = CliRunner().invoke(app, arguments)
    assert "nothing is left" in shown.stdout
    assert CliRunner().invoke(app, [*arguments, "--only", "cord"]).exit_code == 2


@pytest.mark.slow
def test_killed_processes_leave_nothing_that_a_later_call_cannot_go_on_from(tmp_path: Path) -> None:
    """Two at a time, killed without warning; the workers end by themselves, and the next call finishes."""
    plan, out = write_plan(tmp_path, seeds=2), tmp_path / "out"
    command = [sys.executable, "-m", "edgeattn", "study", str(plan), "--out", str(out), "--workers", "2"]
    environment = {**os.environ, "EDGEATTN_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 600
        while not list(out.glob("runs/*/stages.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    time.sleep(6)  # the workers look every two seconds
    states = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    time.sleep(3)
    assert states == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    subprocess.run(command, env=environment, check=True, timeout=900)
    assert len(load_results(out).cells) == 2
