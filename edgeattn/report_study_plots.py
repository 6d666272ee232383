"""The plots of a study: differences with their intervals, as SVG files that a Markdown page shows."""

from __future__ import annotations

import io
import re
from typing import Any

from edgeattn.extras import require
from edgeattn.report_study import MODES, BlockSummary, Estimate, Mode

__all__ = ["plot_block"]

_COLORS: dict[Mode, str] = {
    "fp32": "#57606a",
    "ptq_u8": "#0b63c4",
    "ptq_s8": "#6d31d0",
    "qat_u8": "#12703a",
    "qat_s8": "#b93c0a",
}
_TITLES: dict[Mode, str] = {
    "fp32": "FP32", "ptq_u8": "PTQ u8", "ptq_s8": "PTQ s8", "qat_u8": "QAT u8", "qat_s8": "QAT s8",
}  # fmt: skip
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": "#d5dbe1",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "study",
}
Figures = dict[str, dict[Mode, Estimate]]


def plot_block(block: BlockSummary) -> str | None:
    """Return two plots as one SVG file: attention less none, and INT8 less FP32; None if there is nothing to show.

    Raises:
        MissingExtraError: If matplotlib is absent.
    """
    parts: list[tuple[str, Figures]] = [
        ("attention less none, points of top-1", block.versus_none),
        ("INT8 less FP32, points of top-1", block.versus_fp32),
    ]
    shown = [(title, found) for title, found in parts if found]
    if not shown:
        return None
    matplotlib = require("matplotlib", purpose="the plots of a study")
    require("matplotlib.figure", purpose="the plots of a study")
    rows = max(len(found) for _, found in shown)
    stream = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = matplotlib.figure.Figure(figsize=(9.0, 1.4 + 0.5 * rows), layout="constrained")
        for axes, (title, found) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _draw(axes, title, found)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(stream, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", stream.getvalue(), flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def _draw(axes: Any, title: str, found: Figures) -> None:
    names = list(found)
    modes = [mode for mode in MODES if any(mode in estimates for estimates in found.values())]
    for place, mode in enumerate(modes):
        shift = 0.7 * ((place + 0.5) / len(modes) - 0.5)
        for row, name in enumerate(names):
            estimate = found[name].get(mode)
            if estimate is None:
                continue
            y, mean = row + shift, 100 * estimate.mean
            if estimate.interval is not None:
                axes.plot(
                    [100 * end for end in estimate.interval], [y, y], color=_COLORS[mode], linewidth=1.4
                )
            # Hollow: one seed, so that there is no interval.
            fill = "white" if estimate.interval is None else _COLORS[mode]
            label = _TITLES[mode] if row == 0 else None
            axes.plot(mean, y, "o", markersize=4, color=_COLORS[mode], markerfacecolor=fill, label=label)
    axes.axvline(0, color="#1b1f24", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title(title)
