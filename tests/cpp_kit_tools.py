"""How the tests of the C++ kit build it, run it, and change its model folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

__all__ = [
    "Classify",
    "build",
    "copy_model",
    "edit_manifest",
    "need",
    "read_output",
    "replace_file",
    "run_checked",
    "sha256",
]

Classify = Callable[..., subprocess.CompletedProcess[str]]
"""Runs edgeattn-classify: arguments, and by name the model folder, the cache folder, and more for subprocess.run."""


def need(*tools: str) -> None:
    """Skip where a program is absent."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(
            f"needs {' and '.join(missing)}: apt-get install the packages that README.md of the kit names"
        )


def run_checked(command: list[str], folder: Path) -> str:
    """Run a command that must succeed without a compiler's warning, and return what it printed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "warning:" not in done.stdout + done.stderr, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def build(kit: Path, name: str, *options: str, openvino: str = "") -> Path:
    """Build a kit as its README says, into the folder `name`."""
    openvino = openvino or run_checked([sys.executable, "cmake/find_openvino.py"], kit).strip()
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run_checked(["cmake", "-S", ".", "-B", name, *generator, f"-DOpenVINO_DIR={openvino}", *options], kit)
    run_checked(["cmake", "--build", name, "--parallel", "2"], kit)
    return kit / name


def read_output(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def copy_model(kit: Path, folder: Path) -> Path:
    return Path(shutil.copytree(kit / "model", folder / "model"))


def edit_manifest(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((model / "model.json").read_text())
    change(manifest)
    (model / "model.json").write_text(json.dumps(manifest))


def replace_file(entry: dict[str, Any], model: Path, data: bytes) -> None:
    (model / entry["file"]).write_bytes(data)
    entry.update(sha256=sha256(data), size_bytes=len(data))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
