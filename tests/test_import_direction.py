"""The packages form layers: each imports from the layers below only, also inside functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "edgeattn"

# Low to high. A name also stands for its helpers: report for report_html, cli for cli_output.
LAYERS = (
    "errors",
    "registry",
    "extras",
    "artifact",
    "answers",
    "progress",
    "onnx_graph",
    "onnx_node",
    "onnx_plain",
    "attention",
    "models",
    "data",
    "train",
    "quant",
    "export",
    "lower",
    "lint",
    "targets",
    "measure",
    "recipe",
    "report",
    "pipeline",
    "kit",
    "cli",
)
TOP = {
    "__init__",
    "__main__",
    "readme",
    "readme_benchmarks",
    "readme_tables",
}  # these gather what is below, as the command line does

FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(module: str) -> int:
    """Return the height of ``edgeattn.<something>``."""
    name = module.split(".")[1] if "." in module else "__init__"
    if name in TOP:
        return len(LAYERS) - 1
    candidates = [layer for layer in LAYERS if name == layer or name.startswith(f"{layer}_")]
    assert candidates, f"{module} has no place in the order of layers: add {name!r} to LAYERS"
    return LAYERS.index(max(candidates, key=len))


def module_name(path: Path) -> str:
    parts = ["edgeattn", *path.relative_to(PACKAGE).with_suffix("").parts]
    if len(parts) > 2 and parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the absolute name of every import, lazy ones and string ones included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import; write the whole name"
            for alias in node.names:
                inner = PACKAGE.parent.joinpath(*str(node.module).split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield node.lineno, f"{node.module}.{alias.name}" if is_module else str(node.module)
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            is_import = name in {"import_module", "require", "__import__"}
            if is_import and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value


@pytest.mark.parametrize("path", FILES, ids=[module_name(path) for path in FILES])
def test_imports_go_down(path: Path) -> None:
    """No module imports from a layer above its own."""
    module = module_name(path)
    wrong = []
    for line, name in imports_of(path):
        # `from edgeattn import __version__` needs nothing but the package itself.
        if name.split(".")[0] == "edgeattn" and name != "edgeattn" and layer_of(name) > layer_of(module):
            wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {module} imports {name} from above")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ["targets", "measure"])
def test_targets_and_measure_never_import_torch(package: str) -> None:
    """What runs engines works on a machine without torch."""
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {name}"
        for path in (PACKAGE / package).rglob("*.py")
        for line, name in imports_of(path)
        if name.split(".")[0] in {"torch", "nncf"}
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_shadows_a_runtime() -> None:
    """A file called onnx.py would be mistaken for the package onnx by readers and some tools."""
    assert not {path.stem for path in FILES} & {"onnx", "openvino", "tensorrt", "torch", "onnxruntime"}
