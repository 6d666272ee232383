"""The command line: what it prints where, and how each command ends."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from report_samples import make_report
from typer.testing import CliRunner, Result

from edgeattn import cli, errors
from edgeattn.cli import app
from edgeattn.quant.config import PtqConfig
from edgeattn.recipe import Recipe
from edgeattn.report import Report, write_report

COMMANDS = (
    "run",
    "plan",
    "attentions",
    "targets",
    "quantize",
    "bench",
    "tune",
    "profile",
    "parity",
    "report",
)


@dataclasses.dataclass(frozen=True)
class Step:
    name: str
    what: str
    why_skipped: str = ""


class FakePipeline(ModuleType):
    """Stands for `edgeattn.pipeline`: remembers calls, and returns or raises what a test says."""

    def __init__(self) -> None:
        super().__init__("edgeattn.pipeline")
        self.report = make_report(verdict="pass", reasons=[])
        self.error: BaseException | None = None
        self.calls: list[tuple[Any, ...]] = []

    def run_recipe(self, recipe: Recipe, out: Path, *, strict: bool, progress: Any) -> Report:
        self.calls.append((recipe, out, strict))
        progress.update("train", 1, 2, loss=0.5)
        progress.note("halfway")
        if self.error is not None:
            raise self.error
        write_report(self.report, out)
        return self.report

    def plan_steps(self, recipe: Recipe) -> list[Step]:
        return [Step("train", "10 epochs"), Step("measure", "", "no device [here]")]

    def quantize_onnx(self, model: Path, calibration: str, out: Path, **options: Any) -> Report:
        self.calls.append((model, calibration, out, options))
        return self.report

    def bench_engines(
        self, engines: list[Path], target: str, versus: str | None, plan: Any
    ) -> dict[str, Any]:
        self.calls.append((engines, target, versus, plan))
        latency = {"p50_ms": 0.2, "p90_ms": 0.3, "p99_ms": 0.4, "runs": 64, "threads": 1, "batch": 1}
        return {
            "baseline": "a",
            "latencies": {"a": latency, "b": {**latency, "p50_ms": float("inf")}},
            "ratios": {"b": {"ratio": 2.0, "interval": [1.9, 2.1]}},
        }

    def parity_model(
        self, model: Path, targets: list[str], data: Path, progress: Any, **options: Any
    ) -> dict[str, Any]:
        self.calls.append((model, targets, data, options))
        if self.error is not None:
            raise self.error
        reason = {"about": "ort-cpu", "passed": False, "text": "too far"}
        return {
            "targets": {name: {"agreement": 0.99, "sqnr_db": 25.0} for name in targets},
            "verdict": {"passed": False, "reasons": [reason]},
        }


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake = FakePipeline()
    monkeypatch.setitem(sys.modules, "edgeattn.pipeline", fake)
    return fake


@pytest.fixture
def recipe(repository: Path) -> str:
    return str(repository / "recipes/quickstart.yaml")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    """Every command's help ends with lines that can be typed, of options that it has."""
    shown = invoke(command, "--help")
    assert shown.exit_code == 0
    _, _, examples = shown.output.partition("Examples:")
    assert f"edgeattn {command}" in examples
    options = {word for word in examples.split() if word.startswith("--")}
    assert all(option in shown.output.partition("Examples:")[0] for option in options)


def test_no_command_shows_help() -> None:
    assert "Usage:" in invoke().output


def test_misspelt_command_is_a_usage_error() -> None:
    result = invoke("plam")
    assert result.exit_code == 2
    assert "Did you mean" in result.stderr


def test_run_prints_results_and_where_they_are(pipeline: FakePipeline, recipe: str, tmp_path: Path) -> None:
    """The end of a run: a line for each target, the verdict, and the two files."""
    result = invoke("run", recipe, "--out", str(tmp_path), "--set", "train.epochs=1")
    assert result.exit_code == 0, result.output
    for expected in ("ort-cpu", "98.33 %", "-0.28", "2.10x", "built", "No NVIDIA driver", "verdict: pass"):
        assert expected in result.stdout
    assert str(tmp_path / "report.json") in result.stdout
    assert str(tmp_path / "report.html") in result.stdout
    assert "halfway" in result.stderr
    (request, out, strict), *_ = pipeline.calls
    assert request.train.epochs == 1
    assert (out, strict) == (tmp_path, False)
    invoke("run", recipe, "--out", str(tmp_path), "--strict")
    assert pipeline.calls[-1][2] is True


def test_run_has_a_default_folder(
    pipeline: FakePipeline, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("run", recipe).exit_code == 0
    assert pipeline.calls[0][1] == Path("runs/quickstart")


def test_json_is_alone_on_standard_output(pipeline: FakePipeline, recipe: str, tmp_path: Path) -> None:
    """A program reads standard output; progress is elsewhere."""
    result = invoke("run", recipe, "--out", str(tmp_path), "--json")
    assert Report.model_validate(json.loads(result.stdout)) == pipeline.report
    assert "train  1/2" in result.stderr


def test_missed_bound_ends_with_4(pipeline: FakePipeline, recipe: str, tmp_path: Path) -> None:
    """The report is printed and written all the same."""
    pipeline.report = make_report()
    result = invoke("run", recipe, "--out", str(tmp_path))
    assert result.exit_code == 4
    assert "MISS ort-cpu: speedup 2.10x" in result.stdout
    assert "verdict: fail" in result.stdout


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (errors.RecipeError("bad"), 2, "error: bad"),
        (errors.DataError("bad"), 2, "error: bad"),
        (errors.ModelError("bad"), 2, "error: bad"),
        (errors.MissingExtraError("bad"), 3, "error: bad"),
        (errors.TargetUnavailable("bad"), 3, "error: bad"),
        (errors.ParityError("bad"), 4, "error: bad"),
        (errors.ArtifactError("bad"), 1, "error: bad"),
        (errors.EdgeAttnError("escape \x1b[31m"), 1, "error: escape \\x1b[31m"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again: what it finished is kept"),
        (MemoryError(), 1, "out of memory"),
        (ZeroDivisionError("oops"), 1, "edgeattn --debug"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_errors_end_with_their_code_and_one_message(
    error: BaseException, code: int, expected: str, pipeline: FakePipeline, recipe: str, tmp_path: Path
) -> None:
    """No traceback, nothing on standard output."""
    pipeline.error = error
    result = invoke("run", recipe, "--out", str(tmp_path))
    assert result.exit_code == code
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_only_commands_that_resume_promise_to(pipeline: FakePipeline) -> None:
    pipeline.error = KeyboardInterrupt()
    result = invoke("parity", "m.onnx", "--targets", "ort-cpu", "--data", "photos")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_a_second_interrupt_does_not_break_off_the_exit() -> None:
    program = (
        "import atexit, os, signal, sys; from edgeattn.cli import main; "
        "atexit.register(os.kill, os.getpid(), signal.SIGINT); sys.argv = ['edgeattn', '--help']; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_debug_shows_the_traceback(pipeline: FakePipeline, recipe: str, tmp_path: Path) -> None:
    pipeline.error = ZeroDivisionError("oops")
    result = invoke("--debug", "run", recipe, "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError: oops" in result.stderr


def test_wrong_recipe_ends_with_2(recipe: str) -> None:
    result = invoke("run", recipe, "--set", "train.epoch=3")
    assert result.exit_code == 2
    assert "--set train.epoch=3: train.epoch: unknown key 'epoch'. Did you mean 'epochs'" in result.stderr


def test_plan_says_what_is_skipped(pipeline: FakePipeline, recipe: str) -> None:
    shown = invoke("plan", recipe).stdout
    assert "10 epochs" in shown
    assert "skipped: no device [here]" in shown
    steps = json.loads(invoke("plan", recipe, "--json").stdout)["steps"]
    assert steps[0] == {"name": "train", "what": "10 epochs", "why_skipped": ""}


def test_attentions_and_targets_are_listed() -> None:
    """As tables and as JSON."""
    assert "Coordinate Attention" in invoke("attentions").stdout
    assert {"eca", "coord", "triplet"} <= {
        entry["name"] for entry in json.loads(invoke("attentions", "--json").stdout)
    }
    assert "ort-cpu" in invoke("targets").stdout
    statuses = json.loads(invoke("targets", "--json").stdout)
    assert {"name", "profile", "availability"} <= set(statuses[0])


def test_quantize_passes_what_was_asked(pipeline: FakePipeline, tmp_path: Path) -> None:
    result = invoke(
        *("quantize", "m.onnx", "--calibration", "c.npy", "--out", str(tmp_path)),
        *("--target", "ort-cpu,openvino-cpu", "--range-estimator", "mse", "--input-shape", "1x3x48x192"),
    )
    assert result.exit_code == 0, result.output
    model, calibration, out, options = pipeline.calls[0]
    assert options["input_shape"] == (1, 3, 48, 192)
    assert (model, str(calibration), out) == (Path("m.onnx"), "c.npy", tmp_path)
    assert options["targets"] == ["ort-cpu", "openvino-cpu"]
    assert options["config"].range_estimator == "mse"


@pytest.mark.parametrize(
    "text", ["", "1,3", "3,48,192", "1,3,-1,4", "1,3,0,4", "2,3,8,8", "1,3,h,w", "1,3,99999999,1"]
)
def test_a_shape_that_is_none_is_refused(pipeline: FakePipeline, text: str) -> None:
    result = invoke("quantize", "m.onnx", "--calibration", "c.npy", "--out", "o", "--input-shape", text)
    assert result.exit_code == 2
    assert "such as 1,3,224,224" in result.output
    assert not pipeline.calls


def test_bench_prints_ratios(pipeline: FakePipeline) -> None:
    arguments = ("bench", "a.onnx", "b.onnx", "--target", "ort-cpu", "--quick", "--threads", "2")
    assert "2.000 (1.900 to 2.100)" in invoke(*arguments).stdout
    assert pipeline.calls[0][3].min_runs == 64
    assert pipeline.calls[0][3].threads == 2
    value = json.loads(invoke(*arguments, "--json").stdout)
    assert value["latencies"]["b"]["p50_ms"] is None


def test_parity_prints_agreement(pipeline: FakePipeline) -> None:
    result = invoke("parity", "m.onnx", "--targets", "ort-cpu, openvino-cpu", "--data", "d.npy")
    assert "99.00 %" in result.stdout
    assert pipeline.calls[0][1] == ["ort-cpu", "openvino-cpu"]
    assert "MISS ort-cpu: too far" in result.stdout
    assert result.exit_code == 0
    strict = ("--strict", "--profiles", "u8,s8", "--input-shape", "1,3,8,8")
    result = invoke("parity", "m.onnx", "--targets", "ort-cpu", "--data", "d.npy", *strict)
    assert result.exit_code == 4
    assert pipeline.calls[1][3]["profiles"] == ["u8", "s8"]
    assert pipeline.calls[1][3]["input_shape"] == (1, 3, 8, 8)


def test_report_renders_the_page_again(tmp_path: Path) -> None:
    write_report(make_report(), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "report.html").unlink()
    assert invoke("report", str(tmp_path)).exit_code == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert invoke("report", str(tmp_path / "nowhere")).exit_code == 1


def test_version_names_the_packages() -> None:
    assert "edgeattn " in invoke("version").stdout
    assert "packages" in json.loads(invoke("version", "--json").stdout)


def test_closed_pipe_is_quiet() -> None:
    """`edgeattn attentions | head -0` complains about nothing."""
    with subprocess.Popen(
        [sys.executable, "-m", "edgeattn", "attentions"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert complaint == b""


def test_quantize_defaults_to_what_a_recipe_defaults_to() -> None:
    defaults = inspect.signature(cli.quantize).parameters
    assert defaults["tuning_steps"].default == PtqConfig().tuning_steps
    assert defaults["range_estimator"].default == PtqConfig().range_estimator
