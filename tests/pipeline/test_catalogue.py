"""The catalogue: rows are measured once, say what happened, and become a page."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgeattn.attention import attentions
from edgeattn.cli import app
from edgeattn.errors import ArtifactError, RecipeError
from edgeattn.lower.preferences import preferred_forms
from edgeattn.pipeline_catalogue import (
    CatalogueSettings,
    choose_names,
    choose_targets,
    load_catalogue,
    make_catalogue,
    summarize,
)
from edgeattn.report_catalogue import added_us, render_catalogue

SETTINGS = CatalogueSettings(
    targets=("ort-cpu", "nowhere"),
    channels=8,
    size=6,
    network_size=32,
    images=8,
    timed_runs=16,
    rounds=2,
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("catalogue")
    return out, make_catalogue(out, SETTINGS, only=("gct", "info_nce"))


def test_a_row_holds_what_was_measured(measured: tuple[Path, dict[str, Any]]) -> None:
    rows = {row["name"]: row for row in measured[1]["rows"]}
    assert set(rows) == {"gct", "info_nce"}
    row, result = rows["gct"], rows["gct"]["targets"]["ort-cpu"]
    assert row["parameters"] == 24
    assert row["measured"] == "module"
    # Exact integer arithmetic and ONNX Runtime's agree about what INT8 costs.
    assert row["sqnr_db"]["u8"] > 25
    assert abs(result["sqnr_db"] - row["sqnr_db"]["u8"]) < 3
    assert result["status"] == "ok"
    assert result["int8_ms"] > 0 < result["fp32_ms"]
    assert result["engine_bytes"] > 1000
    # The square root of a pooled map has no INT8 kernel.
    assert "Sqrt" in result["fallbacks"]
    assert "Sqrt" in result["verdict"]
    low, high = result["tax_interval"]
    assert low <= result["tax"] <= high
    # One behind each of MobileNetV2's inverted residuals.
    assert result["places"] == 17
    assert added_us(result) == pytest.approx(1000 * (result["network_int8_ms"] - result["bare_int8_ms"]) / 17)
    assert row["edge_form"] == result["edge_form"] == preferred_forms("ort-cpu")["gct"]


def test_what_cannot_be_measured_says_why(measured: tuple[Path, dict[str, Any]]) -> None:
    rows = {row["name"]: row for row in measured[1]["rows"]}
    assert rows["info_nce"]["measured"] == "module"
    assert rows["info_nce"]["targets"]["ort-cpu"]["tax"] is None
    assert "criterion" in rows["info_nce"]["targets"]["ort-cpu"]["no_tax_reason"]
    assert added_us(rows["info_nce"]["targets"]["ort-cpu"]) is None
    for row in rows.values():
        assert row["targets"]["nowhere"]["status"] == "unavailable"
        assert "no target nowhere" in row["targets"]["nowhere"]["verdict"]
    assert measured[1]["summary"]["without_verdict"] == []


def test_a_saved_row_is_not_measured_again(
    measured: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out, table = measured

    def refuse(*_: Any) -> dict[str, Any]:
        raise AssertionError("measured again")

    monkeypatch.setattr("edgeattn.pipeline_catalogue_row.measure_row", refuse)
    assert make_catalogue(out, SETTINGS, only=("gct",))["rows"] == table["rows"]
    with pytest.raises(AssertionError, match="measured again"):
        make_catalogue(out, SETTINGS.model_copy(update={"images": 9}), only=("gct",))
    with pytest.raises(AssertionError, match="measured again"):
        make_catalogue(out, SETTINGS, only=("gct",), again=True)
    assert json.loads((out / "catalogue.json").read_text())["schema_version"] == 1
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "se.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"se\.json is no row of a catalogue"):
        make_catalogue(tmp_path, SETTINGS, only=("se",))


def test_names_are_checked() -> None:
    assert choose_names(()) == attentions.names()
    with pytest.raises(RecipeError, match="Did you mean 'coord'"):
        choose_names(("cord",))


def test_a_saved_table_is_shown_again(measured: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, table = measured
    page = tmp_path / "page.html"
    arguments = ["catalogue", "--from", str(out / "catalogue.json"), "--only", "gct", "--html", str(page)]
    shown = CliRunner().invoke(app, [*arguments, "--json"])
    assert shown.exit_code == 0, shown.output
    assert [row["name"] for row in json.loads(shown.stdout)["rows"]] == ["gct"]
    assert "Gated Channel Transformation" in page.read_text(encoding="utf-8")
    assert "gct" in CliRunner().invoke(app, arguments).stdout
    with pytest.raises(ArtifactError, match="is no catalogue"):
        load_catalogue(out / "rows" / "gct.json")
    assert table["rows"] == load_catalogue(out / "catalogue.json")["rows"]


def test_targets_are_checked() -> None:
    assert choose_targets(["ort-cpu", "reference"]) == ("ort-cpu", "reference")
    with pytest.raises(RecipeError, match="Did you mean 'ort-cpu'"):
        choose_targets(["ort-cp"])


def test_all_44_mechanisms_are_listed() -> None:
    assert len(attentions) == 44
    families = [attentions.get(name).family for name in attentions]
    assert {name: families.count(name) for name in dict.fromkeys(families)} == {
        "channel": 8,
        "spatial": 12,
        "channel_spatial": 11,
        "branch": 4,
        "temporal": 3,
        "fusion": 6,
    }


def test_summary_counts_what_runs(measured: tuple[Path, dict[str, Any]]) -> None:
    rows = copy.deepcopy(measured[1]["rows"])
    for row in rows:
        row["targets"]["openvino-cpu"] = {"status": "ok", "verdict": "runs"}
    assert summarize(rows)["run_int8_on_both_cpus"] == 1  # a criterion keeps no map's shape
    rows[0]["targets"]["openvino-cpu"] = {"status": "failed", "verdict": ""}
    found = summarize(rows)
    assert found["run_int8_on_both_cpus"] == 0
    assert found["without_verdict"] == ["gct"]
    assert found["least_gate"] == "gct"


class _Reader(HTMLParser):
    """Collects tags, and what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "action")]


def test_the_page_is_whole_and_escapes(measured: tuple[Path, dict[str, Any]]) -> None:
    table = copy.deepcopy(measured[1])
    table["rows"][0]["title"] = "<script>alert(1)</script>"
    other = copy.deepcopy(table["rows"][0])
    other["targets"]["ort-cpu"]["tax"] = 3.5
    table["rows"].append(other)
    page = render_catalogue(table)
    reader = _Reader()
    reader.feed(page)
    assert reader.loads == []
    assert reader.tags.count("script") == 1
    assert reader.tags.count("tr") == 1 + len(table["rows"])
    assert "<svg" in page
    cells = [len(re.findall("<td", row)) for row in page.split("<tr")[2:]]
    assert set(cells) == {len(re.findall("<th ", page))}
