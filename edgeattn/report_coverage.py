"""The coverage of engines whose target can say what it made of a network, as a section of the page."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeattn.report import Report

__all__ = ["coverage_rows"]

_COUNTS = ("kernels", "int8", "float16", "float32", "reformats")


def coverage_rows(report: Report) -> list[tuple[str, str, list[tuple[str, ...]]]]:
    """Return (target, a sentence, rows by module) of every target that reports a coverage, escaped for HTML.

    A row holds the module's path, its kernels, how many of them are INT8, float16 and float32, reformats,
    and KiB moved.
    """
    found = []
    for name, target in report.targets.items():
        coverage: Any = target.build.get("coverage")
        if not isinstance(coverage, dict) or not coverage.get("modules"):
            continue
        rows = [
            (
                html.escape(str(item["module"])),
                *(str(item[key] or "") for key in _COUNTS),
                f"{item['bytes_moved'] / 1024:,.0f}",
            )
            for item in coverage["modules"]
        ]
        share = coverage["int8_coverage"]
        said = [] if share is None else [f"{100 * share:.1f} % of {coverage['convolutions']} layers in INT8"]
        if coverage["gates"]:
            said.append(f"{coverage['gates']} gates of {coverage['kernels_per_gate']:.1f} kernels each")
        said.append(f"{coverage['float32_kernels']} float32 kernels before the last layer")
        missing = ", ".join([*coverage["not_int8"], *coverage["float32_kernel_names"]])
        sentence = html.escape("; ".join(said) + (f". Not INT8, or float32: {missing}." if missing else "."))
        found.append((html.escape(name), sentence, rows))
    return found
