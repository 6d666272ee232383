"""README says what is true: its tables, its links, its commands and its Python."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import pytest
from report_samples import make_report
from typer.testing import CliRunner

from edgeattn.cli import app
from edgeattn.errors import ArtifactError
from edgeattn.readme import GENERATORS, keep_report, update_readme
from edgeattn.report import load_report, write_report

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_generated_parts_are_current() -> None:
    """`make readme` writes them."""
    assert not update_readme(README, check=True), "README.md is out of date: run `make readme`"


def test_every_generator_is_used() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in GENERATORS if f"<!-- generated: {name} -->" not in text] == []


def test_links_lead_somewhere() -> None:
    """Every relative link names a file of the project."""
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert "://" in target or (REPOSITORY / target).exists(), target


def test_commands_exist() -> None:
    """Every edgeattn command in a console block is one, with options that it has."""
    lines = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    commands = [line.split() for line in lines if line.startswith("edgeattn ")]
    assert commands
    for _, command, *arguments in commands:
        shown = CliRunner().invoke(app, [command, "--help"])
        assert shown.exit_code == 0, command
        for option in (word for word in arguments if word.startswith("--")):
            assert option in shown.output, f"edgeattn {command} has no {option}"


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for name in re.findall(r"\$ make ([a-z]+)", README.read_text(encoding="utf-8")):
        assert re.search(rf"^{name}:", makefile, flags=re.MULTILINE), name


def test_python_is_eight_lines_of_names_that_exist() -> None:
    """The example compiles, and imports what is there; the quickstart's test runs the same calls."""
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) == 8
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("edgeattn"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "edgeattn"
        ):
            assert hasattr(importlib.import_module("edgeattn"), node.attr)


def test_kept_report_fills_the_tables(tmp_path: Path) -> None:
    """A run's report, kept without its bulk, is what the results say."""
    write_report(make_report(), tmp_path / "run")
    kept = keep_report(tmp_path / "run", tmp_path / "recipes/reports")
    assert kept.name == "sample.json"
    assert kept.stat().st_size < (tmp_path / "run/report.json").stat().st_size / 4
    assert load_report(kept).targets["ort-cpu"].top1 == 0.9833
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- generated: results -->\nold\n<!-- end generated -->\nb\n")
    assert update_readme(readme)
    text = readme.read_text()
    assert "98.33 %" in text and "2.10x (2.00 to 2.20)" in text and "98.00 %*" in text
    assert "A CPU, AVX512-VNNI and AMX, 2 cores usable" in text
    assert "old" not in text and text.startswith("a\n") and text.endswith("\nb\n")
    assert not update_readme(readme), "a second update changes nothing"


def test_rows_of_the_tax_say_what_openvino_was_held_to(tmp_path: Path) -> None:
    folder = tmp_path / "recipes" / "benchmarks"
    folder.mkdir(parents=True)
    source = REPOSITORY / "recipes" / "benchmarks" / "attention_tax_openvino-cpu_1.json"
    value = json.loads(source.read_text(encoding="utf-8"))
    assert value["openings"] > 1
    for name, variables in (("free", {}), ("held", {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"})):
        value["environment"]["variables"] = variables
        (folder / f"attention_tax_{name}.json").write_text(json.dumps(value), encoding="utf-8")
    table = GENERATORS["attention-tax"](tmp_path)
    places = [line.split("|")[2].strip() for line in table.splitlines() if line.startswith("| MobileNetV2")]
    half = len(value["rows"])
    assert places == ["openvino-cpu, 1"] * half + ["openvino-cpu, 1, AVX2_VNNI"] * half
    assert "AVX2_VNNI: with `ONEDNN_MAX_CPU_ISA=AVX2_VNNI`" in table


def test_rows_of_the_tax_say_whose_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "recipes" / "benchmarks"
    folder.mkdir(parents=True)
    source = REPOSITORY / "recipes" / "benchmarks" / "attention_tax_openvino-cpu_1.json"
    value = json.loads(source.read_text(encoding="utf-8"))
    for model in ("B CPU", "A CPU"):
        value["environment"]["cpu"]["model"] = model
        (folder / f"attention_tax_{model[0]}.json").write_text(json.dumps(value), encoding="utf-8")
    table = GENERATORS["attention-tax"](tmp_path)
    machines = [
        line.split("|")[-2].strip() for line in table.splitlines() if line.startswith("| MobileNetV2")
    ]
    half = len(value["rows"])
    assert machines == ["1"] * half + ["2"] * half
    assert table.index("Machines: 1 A CPU") < table.index("; 2 B CPU")


def test_a_benchmark_that_is_missing_or_cut_short_is_named(tmp_path: Path) -> None:
    assert "tests.benchmarks.lowering_pass" in GENERATORS["lowering-passes"](tmp_path)
    path = tmp_path / "recipes" / "benchmarks" / "lowering_passes.json"
    path.parent.mkdir(parents=True)
    value = json.loads((REPOSITORY / "recipes" / "benchmarks" / path.name).read_text(encoding="utf-8"))
    path.write_text(json.dumps(value), encoding="utf-8")
    assert GENERATORS["lowering-passes"](tmp_path).count("\n| `") == len(value["rows"])
    del value["rows"][0]["gain"]
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"lowering_passes.json is not a result.*'gain'"):
        GENERATORS["lowering-passes"](tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<!-- generated: result -->\n<!-- end generated -->", "Did you mean 'results'"),
        ("<!-- generated: results -->\n", "pair them"),
        ("<!-- end generated -->", "pair them"),
    ],
)
def test_wrong_markers_are_an_error(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ArtifactError, match=expected):
        update_readme(tmp_path / "README.md")
