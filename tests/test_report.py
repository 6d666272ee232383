"""Reports are written whole, read back equal, and follow a published schema."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import pytest
from report_samples import make_report

from edgeattn.errors import ArtifactError
from edgeattn.report import SCHEMA_VERSION, Report, TargetResult, load_report, report_schema, write_report

SCHEMA = Path(__file__).parents[1] / "recipes/report.schema.json"


def test_written_report_reads_back_equal(tmp_path: Path) -> None:
    """report.json holds everything; the folder or the file names it."""
    report = make_report()
    json_path, html_path = write_report(report, tmp_path)
    assert load_report(tmp_path) == load_report(json_path) == report
    assert html_path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_keys_that_programs_rely_on_are_there(tmp_path: Path) -> None:
    """The keys that the documentation promises."""
    write_report(make_report(), tmp_path)
    value = json.loads((tmp_path / "report.json").read_text())
    assert {"schema_version", "recipe", "fingerprint", "environment", "verdict", "reasons", "fp32"} <= set(
        value
    )
    assert {"top1", "n"} <= set(value["fp32"])
    target = value["targets"]["ort-cpu"]
    assert {"status", "engine", "top1", "top1_delta", "agreement", "sqnr_db", "latency", "speedup"} <= set(
        target
    )
    assert {"path", "sha256", "size_bytes"} == set(target["engine"])
    assert {"p50_ms", "p90_ms", "p99_ms", "runs", "threads", "batch"} <= set(target["latency"]["int8"])


def test_schema_is_current_and_describes_reports() -> None:
    """The schema file is what the code says; `make schema` writes it."""
    schema = json.loads(SCHEMA.read_text())
    assert schema == report_schema()
    jsonschema.validate(json.loads(make_report().model_dump_json()), schema)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_lacks_become_null(value: float) -> None:
    """The SQNR of identical outputs is infinite; JSON says null."""
    target = TargetResult(status="ok", sqnr_db=value)
    assert json.loads(target.model_dump_json())["sqnr_db"] is None


def test_shares_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal to 1"):
        TargetResult(status="ok", top1=98.3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not valid JSON"),
        ("[]", "not an edgeattn report"),
        ("{}", "not an edgeattn report"),
        ('{"schema_version": 999}', f"reads up to {SCHEMA_VERSION}. Upgrade"),
        ('{"schema_version": "x"}', "not an edgeattn report"),
    ],
)
def test_file_that_is_no_report_is_an_error(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ArtifactError, match=expected.replace(".", r"\.")):
        load_report(tmp_path)


def test_missing_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Cannot read"):
        load_report(tmp_path)


def test_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies while it writes leaves no half of a file."""
    write_report(make_report(), tmp_path)
    before = (tmp_path / "report.html").read_text(encoding="utf-8")

    def fail(report: Report, inputs: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeattn.report_html.render_html", fail)
    with pytest.raises(KeyboardInterrupt):
        write_report(make_report(verdict="pass", reasons=[]), tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))
