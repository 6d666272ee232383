"""Every run says what each step of post-training quantization gained: on the console, on the page, in README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_samples import make_report

from edgeattn.cli_output import report_text
from edgeattn.errors import ArtifactError
from edgeattn.report import Report
from edgeattn.report_html import render_html
from edgeattn.report_ladder import LADDER_HEADER, ladder_rows


def step(name: str, u8: float, s8: float, *, kept: bool = True) -> dict[str, Any]:
    return {
        "step": name,
        "agreement_u8": 0.9375,
        "sqnr_db_u8": u8,
        "agreement_s8": 1.0,
        "sqnr_db_s8": s8,
        "seconds": 12.4,
        "kept": kept,
    }


def with_ladder(ladder: Any) -> Report:
    return make_report().model_copy(update={"quant": {"ladder": ladder}})


LADDER = [step("ranges", 20.0, 15.0), step("worse", 18.5, 16.0, kept=False), step("<better>", 22.25, 14.0)]


def test_gains_are_against_the_last_step_that_was_kept() -> None:
    rows = ladder_rows(with_ladder(LADDER))
    assert all(len(row) == len(LADDER_HEADER) for row in rows)
    assert [row[2] for row in rows] == ["-", "-1.50", "+2.25"]
    assert [row[4] for row in rows] == ["-", "+1.00", "-1.00"]
    assert rows[1][-2:] == ("12", "no")
    assert rows[2][:2] == ("<better>", "22.25 dB")


def test_console_and_page_show_every_step() -> None:
    report = with_ladder(LADDER)
    text = report_text(report, Path("report.json"), Path("report.html"))
    page = render_html(report)
    for row in ladder_rows(report):
        assert row[0] in text
        assert row[0].replace("<", "&lt;").replace(">", "&gt;") in page
    assert "+2.25" in text
    assert "+2.25" in page
    assert "<better>" not in page


def test_a_report_without_a_ladder_has_no_table() -> None:
    for report in (make_report(), with_ladder([])):
        assert ladder_rows(report) == []
        assert "ladder" not in report_text(report, Path("report.json"), Path("report.html"))


@pytest.mark.parametrize("ladder", [[{"step": "ranges"}], [step("ranges", float("nan"), 1.0)], [7]])
def test_a_ladder_that_is_none_is_refused(ladder: Any) -> None:
    with pytest.raises(ArtifactError, match="Run again"):
        ladder_rows(with_ladder(ladder))
