"""`edgeattn lint` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from attention_networks import quantized
from typer.testing import CliRunner

from edgeattn.cli import app
from edgeattn.lint import lint_graph
from edgeattn.onnx_graph import Graph


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lint") / "eca.onnx"
    onnx.save(quantized("eca", "u8"), str(path))
    return path


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["lint", *arguments])
    return result.exit_code, result.output


def test_errors_are_printed_with_their_rule_and_end_in_one(model: Path) -> None:
    code, text = run(str(model), "--target", "tensorrt")
    assert code == 1
    assert "TRT001 error: unsigned activations" in text
    assert "every value above 127 saturates" in text
    # Its zero points are not all 128, so that they have no signed spelling.
    assert "--fix" not in text.partition("TRT001")[2].partition("\n")[0]
    assert "--fix repairs it, rounding to float16" in text.partition("TRT003")[2].partition("\n")[0]


def test_warnings_alone_end_in_zero(model: Path) -> None:
    code, text = run(str(model), "--target", "dla", "--json")
    findings = json.loads(text)["findings"]
    assert {item["rule"] for item in findings} >= {"TRT001", "DLA001"}
    assert code == 1
    code, text = run(str(model), "--target", "ort")
    assert (code, "nothing found" in text) == (0, True)


def test_fix_writes_a_valid_model_with_less_to_find(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "fixed.onnx"
    _, text = run(str(model), "--target", "dla", "--fix", str(out), "--json")
    result = json.loads(text)
    assert "DLA001" in result["fixed"]
    assert len(result["left"]) < len(result["findings"])
    onnx.checker.check_model(str(out), full_check=True)
    assert len(lint_graph(Graph(onnx.load(str(out))), "dla")) == len(result["left"])


def test_the_plan_shows_what_the_fix_is_worth(model: Path) -> None:
    _, text = run(str(model), "--target", "dla", "--plan", "--json")
    plans = json.loads(text)["plans"]
    assert plans["as it is"]["gpu_parts"] > plans["with --fix"]["gpu_parts"] == 0
    _, text = run(str(model), "--target", "dla", "--plan")
    assert "1 loadable of 16 (fits), 0 GPU parts" in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--target", "tensorflow"), 2, "no lint rules"),
        (("--target", "ort", "--plan"), 2, "--target dla"),
    ],
)
def test_what_cannot_be_done_is_refused(
    arguments: tuple[str, ...], code: int, said: str, model: Path
) -> None:
    got, text = run(str(model), *arguments)
    assert got == code
    assert said in " ".join(text.split())


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "not.onnx"
    path.write_bytes(b"no model")
    assert run(str(path), "--target", "ort")[0] == 2
    assert run(str(tmp_path / "absent.onnx"), "--target", "ort")[0] == 2
