"""The page stands alone, is well-formed, and shows hostile text as text."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_samples import make_report

from edgeattn.cli_output import report_text
from edgeattn.report import Report, TargetResult
from edgeattn.report_html import render_html
from edgeattn.report_text import outputs_text, slower_text

HOSTILE = "<script>alert('x')</script>\"'&$x$--><!--\x1b[31m]]>"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Outline(HTMLParser):
    """Collects elements and complains about any that is not closed where it should be."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(page: str) -> Outline:
    parsed = Outline()
    parsed.feed(page)
    parsed.close()
    assert not parsed.open
    return parsed


def poison(value: Any, key: str = "") -> Any:
    """Put hostile text into every string that may hold any text."""
    if isinstance(value, dict):
        return {name: poison(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [poison(item, key) for item in value]
    fixed = {"status", "sha256", "verdict", "stage", "profile", "schema_version"}
    return value + HOSTILE if isinstance(value, str) and key not in fixed else value


def test_page_stands_alone() -> None:
    """Nothing is fetched, nothing runs, and the page forbids both."""
    page = render_html(make_report())
    found = outline(page)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in found.elements}
    assert not re.search(r"https?:|url\((?!#)|@import", page)
    assert "default-src 'none'" in page
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]


def test_hostile_text_stays_text() -> None:
    """Names, reasons, recipes and devices cannot add elements, in tables and in plots."""
    plain = make_report()
    value = poison(json.loads(plain.model_dump_json()))
    value["targets"] = {name + HOSTILE: target for name, target in value["targets"].items()}
    page = render_html(Report.model_validate(value))
    assert "<script" not in page
    assert "\x1b" not in page
    found = outline(page)
    assert [tag for tag, _ in found.elements if tag == "script"] == []
    assert "<script>alert('x')</script>" in found.text


def test_verdict_comes_first() -> None:
    """Who opens the page sees the verdict, then the bound that was missed."""
    text = outline(render_html(make_report())).text
    body = text[text.index("sample") :]
    assert (
        body.index("FAIL") < body.index("speedup_min") < body.index("float_top1_min") < body.index("Targets")
    )


def test_every_plot_is_described_and_follows_the_page() -> None:
    """Plots have a text alternative and use the page's colours, so that they suit light and dark."""
    page = render_html(make_report())
    found = outline(page)
    images = [attributes for _, attributes in found.elements if attributes.get("role") == "img"]
    assert len(images) == page.count("<svg") == 5
    assert all(attributes["aria-label"] for attributes in images)
    svg = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg)
    assert "DejaVu" not in page
    assert "<metadata" not in page


def test_calibration_from_another_domain_is_called_out_before_the_figures() -> None:
    report = make_report()
    assert report.domain is not None
    text = outline(render_html(report)).text
    assert text.index("unlike the evaluation images") < text.index("Targets")
    alike = report.model_copy(update={"domain": report.domain.model_copy(update={"is_unlike": False})})
    assert "unlike" not in render_html(alike)


def test_layers_come_by_what_they_cost() -> None:
    """The plot shows the worst, the table all, the worst first; a profile without figures is left out."""
    page = render_html(make_report())
    text = outline(page).text
    body = text[text.index("Sensitivity") :]
    assert body.index("features.15.conv") < body.index("features.14.conv") < body.index("features.0.conv")
    assert "+1.30 dB" in body
    assert "−0.20 dB" in body
    assert "Profile s8" not in body
    plot = next(svg for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL) if "in float" in svg)
    assert "features.15.conv [gate]" in plot
    assert "features.0.conv" not in plot


def test_tables_have_captions_and_headers() -> None:
    found = outline(render_html(make_report()))
    tags = [tag for tag, _ in found.elements]
    assert tags.count("table") == tags.count("caption") >= 4
    assert all(attributes.get("scope") for tag, attributes in found.elements if tag == "th")


def test_rendering_is_deterministic() -> None:
    """The same report gives the same page, so that pages can be compared."""
    assert render_html(make_report()) == render_html(make_report())


def test_report_with_nothing_in_it_renders() -> None:
    """A run that measured nothing still gets its page."""
    empty = Report(recipe={}, fingerprint="", verdict="fail", fp32={"n": 0})  # type: ignore[arg-type]
    text = outline(render_html(empty)).text
    assert "unnamed" in text
    assert "FAIL" in text


def test_page_without_matplotlib_says_how_to_get_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of a run does not fail for want of its plots."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = render_html(make_report())
    assert "<svg" not in page
    assert "edgeattn[report]" in page
    outline(page)


def test_each_of_several_outputs_is_named_the_worst_first() -> None:
    report = make_report()
    name, target = next(iter(report.targets.items()))
    target.outputs_sqnr_db = {"scores": 31.25, "same": None, f"boxes{HOSTILE}": 7.5}
    assert outputs_text(target).startswith("boxes")
    page = render_html(report)
    outline = Outline()
    outline.feed(page)
    assert f"{name}: SQNR by output: boxes" in outline.text
    assert "7.5 dB, scores 31.2 dB, same identical." in outline.text
    assert HOSTILE not in page


def test_an_engine_that_is_slower_than_fp32_beyond_doubt_says_so(tmp_path: Path) -> None:
    target = TargetResult(status="ok", speedup=0.6, speedup_interval=(0.5, 0.8))
    assert slower_text("ort-cpu", target).startswith("INT8 takes 1.25 to 2.00 times as long as FP32")
    assert slower_text("reference", target) == ""
    for interval in (None, (0.9, 1.1), (1.2, 1.3)):
        assert slower_text("ort-cpu", target.model_copy(update={"speedup_interval": interval})) == ""
    report = make_report()
    assert "as long as FP32" not in render_html(report)
    report.targets["ort-cpu"].speedup_interval = (0.5, 0.8)
    for text in (
        render_html(report),
        report_text(report, tmp_path / "report.json", tmp_path / "report.html"),
    ):
        assert "INT8 takes 1.25 to 2.00 times as long as FP32 here" in " ".join(text.split())
