"""Render a report as one self-contained HTML page: no script, no network, light and dark.

Everything that comes from the report is escaped: recipes, layer names and what devices answer are not
trusted.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from edgeattn import report_plots
from edgeattn.errors import MissingExtraError
from edgeattn.report_coverage import coverage_rows
from edgeattn.report_ladder import LADDER_HEADER, LADDER_SAYS, ladder_rows
from edgeattn.report_text import device_text, outputs_text, slower_text

if TYPE_CHECKING:
    from edgeattn.report import LatencyResult, Report, TargetResult
    from edgeattn.report_inputs import InputSheet

__all__ = ["render_html"]

_LIGHT = (
    "--page:#fff;--fg:#1b1f24;--muted:#57606a;--card:#f6f8fa;--line:#d5dbe1;--good:#116329;--good-bg:#dafbe1;"
    "--bad:#a40e26;--bad-bg:#ffebe9;--series-0:#0b63c4;--series-1:#b93c0a;--series-2:#12703a;--series-3:#6d31d0;"
    "--series-4:#9a5b00;--series-5:#0e7490"
)
_DARK = (
    "--page:#0f141a;--fg:#e6edf3;--muted:#9aa5b1;--card:#171e26;--line:#303a45;--good:#7ee2a0;--good-bg:#12351f;"
    "--bad:#ffaba8;--bad-bg:#4a1417;--series-0:#63a9ff;--series-1:#ff9a62;--series-2:#5ddc8b;--series-3:#c3a2ff;"
    "--series-4:#f2bf4a;--series-5:#5cd3ea"
)
_CSS = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--page);color:var(--fg);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}}
main{{max-width:1040px;margin:0 auto;padding:2.5rem 1.25rem 4rem}}
h1{{font-size:1.9rem;line-height:1.2;margin:0 0 .4rem;overflow-wrap:anywhere}}
h2{{font-size:1.2rem;margin:2.75rem 0 .75rem;padding-bottom:.35rem;border-bottom:1px solid var(--line)}}
p{{margin:.4rem 0}} .muted{{color:var(--muted)}} .small{{font-size:.86rem}}
.verdict{{display:inline-block;padding:.12rem .8rem;border-radius:999px;font-weight:650;letter-spacing:.02em}}
.good{{color:var(--good);background:var(--good-bg)}} .bad{{color:var(--bad);background:var(--bad-bg)}}
.nw{{white-space:nowrap}} .chip{{padding:.05rem .55rem;border-radius:999px;font-size:.86rem;white-space:nowrap}}
.neutral{{background:var(--card);border:1px solid var(--line)}}
.scroll{{overflow-x:auto}} img{{max-width:100%;height:auto;border-radius:6px}}
table{{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}}
caption{{text-align:left;color:var(--muted);font-size:.86rem;padding-bottom:.4rem}}
th,td{{padding:.42rem .7rem;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}}
th:first-child,td:first-child{{padding-left:0}}
th{{font-weight:600;font-size:.86rem;color:var(--muted)}} tbody th{{color:var(--fg);font-size:1rem}}
.l{{text-align:left;overflow-wrap:anywhere}} td small,th small{{display:block;color:var(--muted);font-weight:400;white-space:nowrap}}
tbody th,td:not(.l){{white-space:nowrap}}
figure{{margin:1rem 0;padding:1rem;background:var(--page);border:1px solid var(--line);border-radius:10px}}
figure svg{{display:block;width:100%;height:auto}} figcaption{{color:var(--muted);font-size:.86rem;padding-top:.6rem}}
pre{{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.9rem;overflow:auto;font-size:.84rem;
 font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;line-height:1.45;white-space:pre-wrap;
 overflow-wrap:anywhere}}
code{{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.9em;overflow-wrap:anywhere}}
details{{margin:.6rem 0}} summary{{cursor:pointer}} summary:focus-visible{{outline:2px solid var(--series-0)}}
.note{{border-left:3px solid var(--line);padding-left:.8rem;margin:.5rem 0;overflow-wrap:anywhere}}
@media print{{:root{{color-scheme:light;{_LIGHT}}} main{{max-width:none;padding:0}} body{{font-size:11pt}}
 figure,tr{{break-inside:avoid}} h2{{break-after:avoid}} .scroll{{overflow:visible}}}}
"""
_STATUS_CLASS = {"ok": "good", "built": "neutral", "unavailable": "neutral", "failed": "bad"}
_NOTHING = "–"


def render_html(report: Report, inputs: InputSheet | None = None) -> str:
    """Return the page, with a picture of the network's inputs if there is one.

    Without matplotlib it has no plots, and says how to get them.
    """
    sections = [
        _header(report),
        _reasons(report),
        _targets(report),
        _inputs(inputs),
        _plots(report),
        _latency(report),
        _ladder(report),
        _sensitivity(report),
        _coverage(report),
        _training(report),
        _details(report),
    ]
    title = f"{report.name}: {report.verdict} - edgeattn"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # Whatever slipped through the escaping could still not run or reach anything.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


# ----------------------------------------------------------------------------------- sections


def _header(report: Report) -> str:
    passed = report.verdict == "pass"
    missed = sum(not reason.passed for reason in report.reasons)
    summary = "No bounds were set." if not report.reasons else f"All {len(report.reasons)} bounds are met."
    if missed:
        summary = f"{missed} of {len(report.reasons)} bounds {'is' if missed == 1 else 'are'} missed."
    elif not passed:
        summary = "The run did not finish as asked; see the targets."
    description = str(report.recipe.get("description") or "")
    figures = f"{report.fp32.n:,} images"
    if report.fp32.top1 is not None:
        figures = f"FP32 top-1 {_share(report.fp32.top1)} on {figures}"
    return (
        f"<header><h1>{_text(report.name)}</h1>"
        + (f'<p class="muted">{_text(description)}</p>' if description else "")
        + f'<p><span class="verdict {"good" if passed else "bad"}">{_text(report.verdict.upper())}</span> {summary}</p>'
        f'<p class="muted small">{figures} · recipe <code>{_text(report.fingerprint[:12])}</code></p></header>'
    )


def _reasons(report: Report) -> str:
    if not report.reasons:
        warning = _domain(report)
        return _section("Verdict", warning) if warning else ""
    rows = []
    for reason in sorted(report.reasons, key=lambda reason: reason.passed):
        chip = _chip("met", "good") if reason.passed else _chip("missed", "bad")
        if reason.certain is False:
            chip += "<small>within the interval</small>"
        about = f'<span class="nw">{_text(reason.target or "float network")}</span>'
        rows.append((_text(reason.bound), about, chip, _text(reason.text)))
    header = ("bound", "about", "result", "why")
    table = _table("What the recipe accepts, and what was measured.", header, rows, left=4)
    return _section("Verdict", table + _domain(report))


def _domain(report: Report) -> str:
    warning = report.domain.warning if report.domain else None
    return f'<p class="note">{_text(warning)}</p>' if warning else ""


def _targets(report: Report) -> str:
    if not report.targets:
        return ""
    rows, notes = [], []
    for name, target in report.targets.items():
        rows.append(_target_cells(name, target))
        said = (target.reason, target.error, target.graph_warning, slower_text(name, target))
        notes += [f"<strong>{_text(name)}</strong>: {_text(text)}" for text in said if text]
        if where := device_text(target.build):
            notes.append(f"<strong>{_text(name)}</strong>: {_text(where)}.")
        if ratios := outputs_text(target):
            notes.append(f"<strong>{_text(name)}</strong>: SQNR by output: {_text(ratios)}.")
        if target.checked_by:
            notes.append(
                f"<strong>{_text(name)}</strong>: the accuracy is that of the same QDQ file run by "
                f"{_text(target.checked_by)}, because the engine cannot run here."
            )
    header = ("target", "status", "top-1", "delta", "agreement", "SQNR", "INT8 p50", "FP32 p50", "speed-up")
    caption = "INT8 on every target. Delta: points of top-1 against FP32. Agreement: same answer as FP32."
    body = _table(caption, header, rows, left=2) + "".join(
        f'<p class="note small">{note}</p>' for note in notes
    )
    return _section("Targets", body)


def _inputs(sheet: InputSheet | None) -> str:
    if sheet is None:
        return ""
    picture = f'<img src="{sheet.data_uri()}" width="{sheet.width}" alt="Inputs of the network">'
    return _section("What the network sees", f'<p class="small muted">{_text(sheet.caption)}</p>{picture}')


def _target_cells(name: str, target: TargetResult) -> tuple[str, ...]:
    delta = _NOTHING if target.top1_delta is None else f"{100 * target.top1_delta:+.2f}"
    speedup = _NOTHING if target.speedup is None else f"{target.speedup:.2f}×"
    return (
        _text(name) + (f"<small>{_text(target.profile)}</small>" if target.profile else ""),
        _chip(target.status, _STATUS_CLASS[target.status]),
        _share(target.top1) + _span(target.top1_interval, 100, 1),
        delta + _span(target.top1_delta_interval, 100, 2),
        _share(target.agreement) + _span(target.agreement_interval, 100, 1),
        _NOTHING if target.sqnr_db is None else f"{target.sqnr_db:.1f} dB",
        _p50(target.latency.int8),
        _p50(target.latency.fp32),
        speedup + _span(target.speedup_interval, 1, 2),
    )


def _plots(report: Report) -> str:
    plots: list[tuple[str, str, Callable[[Report], str | None]]] = [
        ("Accuracy against latency", "Up and to the left is better.", report_plots.plot_accuracy_latency),
        (
            "Quantization noise by layer",
            "Where a line falls, that layer loses precision.",
            report_plots.plot_layer_sqnr,
        ),
        (
            "What quantization costs most",
            "Layers and gates by what the outputs gain with each of them in float.",
            report_plots.plot_sensitivity,
        ),
        (
            "Time by layer",
            "The slowest executed layers, as each runtime reports them.",
            report_plots.plot_layer_times,
        ),
    ]
    figures = []
    try:
        for title, caption, draw in plots:
            if svg := draw(report):
                figures.append(_figure(title, caption, svg))
    except MissingExtraError as exc:
        return _section("Plots", f'<p class="note">{_text(exc)}</p>')
    return _section("Plots", "".join(figures)) if figures else ""


def _latency(report: Report) -> str:
    rows = []
    for name, target in report.targets.items():
        for precision, latency in (("INT8", target.latency.int8), ("FP32", target.latency.fp32)):
            if latency is not None:
                times = (f"{value:.3f}" for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms))
                counts = (f"{latency.runs:,}", str(latency.threads), str(latency.batch))
                rows.append((_text(name), precision, *times, *counts))
    if not rows:
        return ""
    header = ("target", "precision", "p50 ms", "p90 ms", "p99 ms", "runs", "threads", "batch")
    caption = "After warm-up, input in memory; an absolute time holds for the machine below only."
    return _section("Latency", _table(caption, header, rows, left=2))


def _ladder(report: Report) -> str:
    rows = [tuple(_text(cell) for cell in row) for row in ladder_rows(report)]
    return (
        _section("Quantization, step by step", _table(f"{LADDER_SAYS}.", LADDER_HEADER, rows, left=1))
        if rows
        else ""
    )


def _sensitivity(report: Report) -> str:
    header = ("layer or gate", "", "alone in INT8", "gain in float")
    caption = "SQNR of the outputs with only this one in INT8, and what it gains with only this one in float."
    tables = []
    for profile, items in report.sensitivity.items():
        rows = [
            (
                _text(item.module or item.name),
                "gate" if item.is_gate else "layer",
                _NOTHING if item.alone_sqnr_db is None else f"{item.alone_sqnr_db:.1f} dB",
                _NOTHING if item.gain_db is None else f"{item.gain_db:+.2f} dB".replace("-", "−"),
            )
            for item in sorted(items, key=lambda item: item.gain_db or 0.0, reverse=True)
        ]
        if rows:
            tables.append(_details_of(f"Profile {profile}", _table(caption, header, rows, left=2)))
    return _section("Sensitivity", "".join(tables)) if tables else ""


def _coverage(report: Report) -> str:
    header = ("module", "kernels", "INT8", "float16", "float32", "reformats", "KiB moved")
    tables = [
        f"<h3>{name}</h3>" + _table(sentence, header, rows, left=1)
        for name, sentence, rows in coverage_rows(report)
    ]
    return _section("What was built", "".join(tables)) if tables else ""


def _training(report: Report) -> str:
    if not report.training:
        return ""
    try:
        svg = report_plots.plot_training(report)
    except MissingExtraError:
        svg = None
    rows = [
        (
            _text(epoch.stage),
            str(epoch.epoch),
            _NOTHING if epoch.loss is None else f"{epoch.loss:.4f}",
            _share(epoch.top1),
            _NOTHING if epoch.learning_rate is None else f"{epoch.learning_rate:.2e}",
            _NOTHING if epoch.seconds is None else f"{epoch.seconds:.1f}",
        )
        for epoch in report.training
    ]
    header = ("stage", "epoch", "loss", "top-1", "learning rate", "seconds")
    table = _details_of("Every epoch", _table("Top-1 is of the validation split.", header, rows, left=1))
    figure = _figure("Training", "Loss and validation top-1 by epoch.", svg) if svg else ""
    return _section("Training", figure + table)


def _details(report: Report) -> str:
    stages = [
        (_text(stage.name), f"{stage.seconds:.1f}", "from an earlier run" if stage.resumed else "")
        for stage in report.stages
    ]
    parts = []
    if stages:
        total = sum(stage.seconds for stage in report.stages)
        parts.append(_table(f"Steps, {total:.0f} s in all.", ("step", "seconds", ""), stages, left=1))
    for name, target in report.targets.items():
        build: dict[str, Any] = dict(target.build)
        if target.engine is not None:
            build = {"engine": target.engine.model_dump(), **build}
        if build:
            parts.append(_details_of(f"Engine of {name}", _json(build)))
    if report.quant:
        parts.append(_details_of("Quantization", _json(report.quant)))
    if report.environment:
        parts.append(_details_of("Environment", _json(report.environment), is_open=True))
    recipe = yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True)
    parts.append(_details_of("Recipe", f"<pre>{_text(recipe)}</pre>"))
    return _section("How it was made", "".join(parts))


# ------------------------------------------------------------------------------------ helpers


def _text(value: object) -> str:
    """Escape anything for any place in the page; control characters become visible."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else "�" for c in str(value))
    return html.escape(shown, quote=True)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>"


def _table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> str:
    """Build a table from cells that are HTML already; the first `left` columns are words."""

    def kind(index: int) -> str:
        return ' class="l"' if index < left else ""

    head = "".join(f'<th scope="col"{kind(i)}>{_text(title)}</th>' for i, title in enumerate(header))
    lines = []
    for row in rows:
        first = f'<th scope="row" class="l">{row[0]}</th>'
        lines.append(f"<tr>{first}{''.join(f'<td{kind(i)}>{c}</td>' for i, c in enumerate(row) if i)}</tr>")
    return (
        f'<div class="scroll"><table><caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _figure(title: str, caption: str, svg: str) -> str:
    label = f"{title}. {caption} The figures are in the tables of this page and in report.json."
    return (
        f'<figure><div role="img" aria-label="{_text(label)}">{svg}</div>'
        f"<figcaption><strong>{_text(title)}.</strong> {_text(caption)}</figcaption></figure>"
    )


def _details_of(title: str, body: str, *, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{_text(title)}</summary>{body}</details>"


def _json(value: Mapping[str, Any]) -> str:
    return f"<pre>{_text(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"


def _chip(text: str, css_class: str) -> str:
    return f'<span class="chip {css_class}">{_text(text)}</span>'


def _share(value: float | None) -> str:
    return _NOTHING if value is None else f"{100 * value:.2f} %"


def _span(interval: tuple[float, float] | None, scale: float, digits: int) -> str:
    if interval is None:
        return ""
    low, high = (f"{scale * end:.{digits}f}".replace("-", "−") for end in interval)
    return f"<small>{low} to {high}</small>"


def _p50(latency: LatencyResult | None) -> str:
    return _NOTHING if latency is None else f"{latency.p50_ms:.3f} ms"
