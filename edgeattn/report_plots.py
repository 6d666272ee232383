"""The plots of a report, as inline SVG that follows the page's light or dark colours.

Matplotlib draws with placeholder colours; each is then replaced by a CSS variable of the page. Text stays
text, so it can be searched and read aloud, and uses the page's font.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeattn.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from edgeattn.report import EpochResult, Report

__all__ = [
    "SERIES_COUNT",
    "plot_accuracy_latency",
    "plot_layer_sqnr",
    "plot_layer_times",
    "plot_sensitivity",
    "plot_training",
]

SERIES_COUNT = 6
_FOREGROUND, _MUTED, _GRID, _PAGE = "#010101", "#010102", "#010103", "#010104"
_SERIES = tuple(f"#01020{index}" for index in range(SERIES_COUNT))
_VARIABLE_OF_COLOR = {
    _FOREGROUND: "var(--fg)",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    _PAGE: "var(--page)",
    **{color: f"var(--series-{index})" for index, color in enumerate(_SERIES)},
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a layer's name is a dollar sign
    "font.size": 10,
    "text.color": _FOREGROUND,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
_WIDTH = 8.0
_MOST_BARS = 20
_MOST_SENSITIVE = 12
_LINES = ("-", "--", ":", "-.")


def plot_accuracy_latency(report: Report) -> str | None:
    """Draw top-1 against latency: for every target a hollow FP32 and a filled INT8 point, joined."""
    rows = [
        (name, target)
        for name, target in report.targets.items()
        if target.latency.int8 is not None and target.top1 is not None
    ]
    if not rows:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (name, target) in enumerate(rows):
            color = _SERIES[index % SERIES_COUNT]
            int8, fp32 = target.latency.int8, target.latency.fp32
            if int8 is None or target.top1 is None:
                continue
            x, y = int8.p50_ms, 100 * target.top1
            if fp32 is not None and report.fp32.top1 is not None:
                start = (fp32.p50_ms, 100 * report.fp32.top1)
                axes.plot([start[0], x], [start[1], y], color=color, linewidth=1.2, linestyle=":")
                axes.plot(*start, "o", markersize=8, markerfacecolor=_PAGE, markeredgecolor=color)
            if target.top1_interval is not None:
                low, high = (100 * share for share in target.top1_interval)
                axes.plot([x, x], [low, high], color=color, linewidth=1)
            axes.plot(x, y, "o", markersize=8, color=color, label=_plain(name))
        axes.set_xlabel("latency p50 in ms, one image (hollow: FP32, filled: INT8)")
        axes.set_ylabel("top-1 in %, with 95 % interval")
        axes.set_xlim(left=0)
        axes.margins(x=0.1, y=0.15)
        axes.legend(loc="lower right")

    return _render(draw, height=3.6, salt="accuracy")


def plot_layer_sqnr(report: Report) -> str | None:
    """Draw how far quantization moved each layer's output, from input to output."""
    rows = {
        name: [layer.sqnr_db for layer in target.layers]
        for name, target in report.targets.items()
        if any(layer.sqnr_db is not None for layer in target.layers)
    }
    if not rows:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (name, values) in enumerate(rows.items()):
            points = [(place, value) for place, value in enumerate(values) if value is not None]
            # Targets that are fed the same file coincide: dashes let the line below show.
            axes.plot(
                *zip(*points, strict=True),
                color=_SERIES[index % SERIES_COUNT],
                linestyle=_LINES[index % len(_LINES)],
                label=_plain(name),
            )
        axes.set_xlabel("layer, from input to output")
        axes.set_ylabel("SQNR in dB (higher is closer to FP32)")
        if len(rows) > 1:
            axes.legend()

    return _render(draw, height=3.0, salt="sqnr")


def plot_sensitivity(report: Report) -> str | None:
    """Draw the layers and gates without whose quantization the outputs would gain most, by profile."""
    most = {
        profile: sorted(items, key=lambda item: item.gain_db or 0.0, reverse=True)[:_MOST_SENSITIVE]
        for profile, items in report.sensitivity.items()
        if items
    }
    if not most:
        return None
    heights = [0.24 * len(items) + 0.9 for items in most.values()]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(most), 1, squeeze=False, height_ratios=heights)
        for index, (profile, items) in enumerate(most.items()):
            axes: Axes = grid[index][0]
            # Gates in the second colour: a policy can leave them in float.
            colors = [_SERIES[int(item.is_gate)] for item in items]
            axes.barh(range(len(items)), [item.gain_db or 0.0 for item in items], color=colors, height=0.72)
            axes.set_yticks(
                range(len(items)),
                [_label(item.module or item.name, "gate" if item.is_gate else "") for item in items],
            )
            axes.invert_yaxis()
            axes.grid(visible=False, axis="y")
            axes.set_title(f"profile {_plain(profile)}: {len(items)} of {len(report.sensitivity[profile])}")
            axes.set_xlabel("dB that the outputs' SQNR gains with this one in float")

    return _render(draw, height=sum(heights), salt="sensitivity")


def plot_layer_times(report: Report) -> str | None:
    """Draw the slowest executed layers of every target that can tell."""
    rows = {name: target.layer_times for name, target in report.targets.items() if target.layer_times}
    if not rows:
        return None
    slowest = {
        name: sorted(times, key=lambda layer: layer.latency_us, reverse=True)[:_MOST_BARS]
        for name, times in rows.items()
    }
    heights = [0.24 * len(layers) + 0.9 for layers in slowest.values()]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(slowest), 1, squeeze=False, height_ratios=heights)
        for index, (name, layers) in enumerate(slowest.items()):
            axes: Axes = grid[index][0]
            values = [layer.latency_us for layer in layers]
            axes.barh(range(len(layers)), values, color=_SERIES[index % SERIES_COUNT], height=0.72)
            # Positions, not names, place the bars: two layers may share a shortened name.
            axes.set_yticks(range(len(layers)), [_label(layer.name, layer.dtype) for layer in layers])
            axes.invert_yaxis()
            axes.grid(visible=False, axis="y")
            whole = sum(layer.latency_us for layer in rows[name])
            axes.set_title(
                f"{_plain(name)}: {sum(values):.0f} of {whole:.0f} µs in {len(values)} of {len(rows[name])}"
            )
            axes.set_xlabel("µs")

    return _render(draw, height=sum(heights), salt="times")


def plot_training(report: Report) -> str | None:
    """Draw loss and validation top-1 by epoch; QAT follows float training."""
    if not report.training:
        return None
    panels: list[tuple[str, Callable[[EpochResult], float | None]]] = [
        ("loss", lambda epoch: epoch.loss),
        ("validation top-1 in %", lambda epoch: None if epoch.top1 is None else 100 * epoch.top1),
    ]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, len(panels), squeeze=False)
        for axes, (title, read) in zip(grid[0], panels, strict=True):
            for index, stage in enumerate(("float", "qat")):
                points = [
                    (place, value)
                    for place, epoch in enumerate(report.training, start=1)
                    if epoch.stage == stage and (value := read(epoch)) is not None
                ]
                if points:
                    axes.plot(
                        *zip(*points, strict=True), "o-", markersize=3, color=_SERIES[index], label=stage
                    )
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.legend()

    return _render(draw, height=2.8, salt="training")


# ------------------------------------------------------------------------------------ helpers


def _plain(text: str, length: int = 44) -> str:
    """Shorten from the middle, and replace what may not stand in SVG: control characters."""
    text = "".join(c if c.isprintable() else "�" for c in text)
    half = length // 2
    return text if len(text) <= length else f"{text[: half - 1]}…{text[-half:]}"


def _label(name: str, dtype: str) -> str:
    return f"{_plain(name)} [{_plain(dtype, 12)}]" if dtype else _plain(name)


def _render(draw: Callable[[Figure], None], *, height: float, salt: str) -> str:
    matplotlib = require("matplotlib", purpose="the plots of the report")
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        # That its own font, which only measures the text, lacks a glyph; that a plot is crowded.
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(stream.getvalue())


def _inline(svg: str) -> str:
    """Make a stand-alone SVG file fit to stand inside a page with others."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every plot, and an id belongs to one element
    svg = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"font(-family)?: (\d[\w.]*px )?'DejaVu Sans'[^;\"]*", _own_font, svg)
    for color, variable in _VARIABLE_OF_COLOR.items():
        svg = svg.replace(color, variable)
    return svg


def _own_font(match: re.Match[str]) -> str:
    size = (match.group(2) or "").strip()
    return f"font-size: {size}" if size else "font-family: inherit"
