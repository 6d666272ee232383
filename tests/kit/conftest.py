from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from demo_split import DemoSplit, load_demo_split
from own_classifier import quantized

from edgeattn.data.model_input import ImageOptions
from edgeattn.kit.write import write_kit

# The kit must not find edgeattn, wherever it is installed.
_WITHOUT_EDGEATTN = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "edgeattn":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

Runner = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def demo_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python kit of the demonstration; not to be changed."""
    out = tmp_path_factory.mktemp("kit") / "python"
    write_kit("python", None, out)
    return out


@pytest.fixture(scope="session")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `edgeattn quantize` wrote of somebody's classifier; not to be changed."""
    return quantized(tmp_path_factory.mktemp("own"), options=ImageOptions("symmetric"))


@pytest.fixture(scope="session")
def kit_module(demo_kit: Path) -> ModuleType:
    """The kit's one file, as a module."""
    spec = importlib.util.spec_from_file_location("edgeattn_classify", demo_kit / "edgeattn_classify.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def without_edgeattn() -> list[str]:
    """The beginning of a command line that runs a file where edgeattn cannot be imported."""
    return [sys.executable, "-c", _WITHOUT_EDGEATTN]


@pytest.fixture(scope="session")
def run_kit(without_edgeattn: list[str]) -> Runner:
    """Runs a kit's command where edgeattn cannot be imported."""

    def run(kit: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*without_edgeattn, str(kit / "edgeattn_classify.py"), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=kit,
        )

    return run


@pytest.fixture(scope="session")
def demo_split(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DemoSplit:
    """The demonstration's test photographs with ort-cpu's answers; ort-cpu itself is right nearly always."""
    pytest.importorskip("onnxruntime")
    split = load_demo_split(tmp_path_factory.mktemp("split"))
    assert (split.top1 == split.labels).mean() > 0.98
    return split
