"""Without torch and every runtime, the command line still says what there is and what a run would do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = ("torch", "nncf", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "sklearn", "matplotlib")

PREAMBLE = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""

BEYOND_PIP = {"jetson-ssh"}


def run_bare(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PREAMBLE + code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run_command(arguments: list[str], folder: Path) -> str:
    code = f"sys.argv = {['edgeattn', *arguments]!r}\nfrom edgeattn.cli import main\nmain()"
    done = run_bare(code, folder)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["version"], ["attentions"]])
def test_command_works(arguments: list[str], repository: Path) -> None:
    """Commands that need no framework run without one."""
    assert run_command(arguments, repository).strip()


def test_plan_works(repository: Path) -> None:
    """A recipe can be planned where it cannot be run."""
    plan = json.loads(run_command(["plan", "recipes/quickstart.yaml", "--json"], repository))
    assert plan["recipe"] == "quickstart"
    assert plan["steps"]


def test_targets_say_what_is_missing(repository: Path) -> None:
    """Every target is listed, none works, and each says why and what would help."""
    statuses = json.loads(run_command(["targets", "--json"], repository))
    assert {"ort-cpu", "openvino-cpu", "tensorrt-rtx"} <= {status["name"] for status in statuses}
    for status in statuses:
        if status["name"] == "arm64":
            continue  # emulated with packages of its own, whatever is installed here
        if status["name"] == "reference":
            # It needs nothing but what edgeattn itself needs.
            assert status["availability"]["can_run"]
            continue
        assert not status["availability"]["can_run"]
        # An extra, or for what pip cannot install another command that helps.
        install = status["availability"]["install"]
        assert "edgeattn[" in install or status["name"] in BEYOND_PIP, status
        assert install


def test_the_rest_imports(repository: Path) -> None:
    """Only what is made of torch needs torch."""
    code = """
import importlib, pkgutil
import edgeattn

made_of_torch = (
    "edgeattn.attention.",
    "edgeattn.models",
    "edgeattn.train.",
    "edgeattn.quant.",
    "edgeattn.export",
    "edgeattn.pipeline_catalogue_",
    "edgeattn.pipeline_float",
    "edgeattn.pipeline_gate",
    "edgeattn.pipeline_train",
    "edgeattn.pipeline_tune",
)
for module in pkgutil.walk_packages(edgeattn.__path__, "edgeattn."):
    if not f"{module.name}.".startswith(made_of_torch) and module.name != "edgeattn.__main__":
        importlib.import_module(module.name)
import edgeattn.train.config, edgeattn.quant.config
"""
    done = run_bare(code, repository)
    assert done.returncode == 0, done.stderr


def test_missing_extra_is_named(repository: Path, tmp_path: Path) -> None:
    """Running ends with exit code 3 and the command that installs what is missing."""
    arguments = [
        "edgeattn",
        "run",
        str(repository / "recipes/quickstart.yaml"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = run_bare(f"sys.argv = {arguments!r}\nfrom edgeattn.cli import main\nmain()", repository)
    assert done.returncode == 3, done.stderr
    assert "pip install 'edgeattn[" in done.stderr
