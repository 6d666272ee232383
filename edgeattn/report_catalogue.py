"""The catalogue as one self-contained page: a table that sorts and filters, and plots; no network.

Every text from the results is escaped. The script only moves and hides rows that are in the page already.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeattn.artifact import write_bytes

__all__ = ["added_us", "render_catalogue", "write_catalogue_page"]

_COLORS = {
    "channel": "--a", "spatial": "--b", "channel_spatial": "--c", "branch": "--d", "temporal": "--e", "fusion": "--f",
}  # fmt: skip
_CSS = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--mute:#57606a;--line:#d5dbe1;--card:#f6f8fa;
--a:#0b63c4;--b:#b93c0a;--c:#12703a;--d:#6d31d0;--e:#9a5b00;--f:#0e7490}
@media (prefers-color-scheme:dark){:root{--bg:#0f141a;--fg:#e6edf3;--mute:#9aa5b1;--line:#303a45;--card:#171e26;
--a:#63a9ff;--b:#ff9a62;--c:#5ddc8b;--d:#c3a2ff;--e:#f2bf4a;--f:#5cd3ea}}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:1900px;margin:0 auto;padding:2rem 1.25rem 4rem}h1{margin:0 0 .3rem}
.mute{color:var(--mute)}.scroll{overflow:auto;max-height:85vh;border:1px solid var(--line);border-radius:10px}
form{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.2rem 0;align-items:center}
input,select{font:inherit;padding:.25rem .5rem;border:1px solid var(--line);border-radius:6px;background:var(--card);
color:inherit}
table{border-collapse:separate;border-spacing:0;font-variant-numeric:tabular-nums;font-size:.86rem}
th,td{padding:.25rem .5rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;white-space:nowrap}
td.l,th.l{text-align:left}td.w{white-space:normal;min-width:15rem;font-size:.8rem}
td:first-child,th:first-child{position:sticky;left:0;background:var(--bg);font-weight:600}
th:first-child{z-index:1}
thead th{position:sticky;top:0;background:var(--bg)}thead th:first-child{z-index:2}
thead button{all:unset;cursor:pointer;font-weight:600;color:var(--mute)}
thead button:focus-visible{outline:2px solid var(--a)}
th[aria-sort=ascending] button::after{content:" \\2191"}th[aria-sort=descending] button::after{content:" \\2193"}
figure{margin:0;padding:1rem;border:1px solid var(--line);border-radius:10px}svg{width:100%;height:auto}
svg text{fill:var(--mute);font:11px system-ui,sans-serif}figcaption{color:var(--mute);font-size:.86rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,520px),1fr));gap:1rem;margin-top:1.2rem}
.key{display:flex;flex-wrap:wrap;gap:.3rem 1rem;margin-top:1rem;font-size:.86rem}
.key i{display:inline-block;width:.7rem;height:.7rem;border-radius:50%;margin-right:.35rem}
"""
_SCRIPT = """
const body=document.querySelector('tbody'),rows=[...body.rows],count=document.getElementById('count');
const family=document.getElementById('family'),text=document.getElementById('text');
function filter(){let shown=0;for(const row of rows){const fits=(!family.value||row.dataset.family===family.value)&&
row.textContent.toLowerCase().includes(text.value.toLowerCase());row.hidden=!fits;shown+=fits}
count.textContent=shown+' of '+rows.length}
family.addEventListener('input',filter);text.addEventListener('input',filter);
document.querySelector('form').addEventListener('submit',event=>event.preventDefault());
document.querySelectorAll('thead button').forEach(button=>button.addEventListener('click',()=>{
const head=button.closest('th'),place=head.cellIndex,up=head.getAttribute('aria-sort')!=='ascending';
document.querySelectorAll('thead th').forEach(other=>other.removeAttribute('aria-sort'));
head.setAttribute('aria-sort',up?'ascending':'descending');
const key=row=>row.cells[place].dataset.key;
rows.sort((first,second)=>{const a=key(first),b=key(second);if(a===''||b==='')return (a==='')-(b==='');
const x=Number(a),y=Number(b),order=isNaN(x)||isNaN(y)?a.localeCompare(b):x-y;return up?order:-order});
body.append(...rows)}));filter();
"""


def write_catalogue_page(table: Mapping[str, Any], path: Path) -> None:
    """Write the page of a table of `edgeattn.pipeline_catalogue.make_catalogue`."""
    write_bytes(path, render_catalogue(table).encode("utf-8"))


def render_catalogue(table: Mapping[str, Any]) -> str:
    """Return the page."""
    rows: Sequence[Mapping[str, Any]] = table["rows"]
    targets = list(table["settings"]["targets"])
    columns = _columns(targets, rows)
    head = "".join(
        f'<th class="{style}" scope="col"><button type="button">{_text(title)}</button></th>'
        for title, style, _ in columns
    )
    body = "".join(
        f'<tr data-family="{_text(row["family"])}">'
        + "".join(_cell(value(row), style) for _, style, value in columns)
        + "</tr>"
        for row in rows
    )
    families = "".join(
        f'<option value="{_text(name)}">{_text(name.replace("_", " and "))}</option>'
        for name in dict.fromkeys(row["family"] for row in rows)
    )
    settings, machine = table["settings"], table.get("environment", {})
    cpu = machine.get("cpu", {})
    where = cpu.get("model", "") if isinstance(cpu, Mapping) else cpu
    plots = "".join(_plot(rows, name) for name in targets)
    if plots:
        key = "".join(
            f'<span><i style="background:var({_COLORS.get(name, "--a")})"></i>{_text(name.replace("_", " and "))}</span>'
            for name in dict.fromkeys(row["family"] for row in rows)
        )
        plots = f'<div class="plots">{plots}</div><div class="key">{key}</div>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Attention in INT8: the catalogue</title><style>{_CSS}</style></head><body><main>"
        "<h1>Attention in INT8: the catalogue</h1>"
        f'<p class="mute">{len(rows)} mechanisms. A module alone: {settings["channels"]} channels, '
        f"{settings['size']} x {settings['size']}, before the 1x1 convolution that reads it; others in the small "
        "network that stands for them. Tax: INT8 MobileNetV2 of width "
        f"{settings['network_width']} at {settings['network_size']} x {settings['network_size']} with the "
        "mechanism at its authors' places, by the bare one, timed in turns, less 1. SQNR u8 and s8: of exact "
        "integer arithmetic; a runtime's own can be lower on CPUs without VNNI instructions. "
        f"{settings['threads']} thread; measured on {_text(where or 'this machine')}.</p>"
        f"{plots}"
        '<form><label>Family <select id="family"><option value="">all</option>'
        f'{families}</select></label><label>Search <input id="text" type="search"></label>'
        '<output id="count"></output></form>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></main><script>{_SCRIPT}</script></body></html>\n'
    )


Value = tuple[str, str]
Column = tuple[str, str, Callable[[Mapping[str, Any]], Value]]


def _columns(targets: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    def at(target: str, key: str, show: Callable[[Any], Value]) -> Callable[[Mapping[str, Any]], Value]:
        return lambda row: show(row["targets"].get(target, {}).get(key))

    columns: list[Column] = [
        ("id", "l", lambda row: (row["name"], row["name"])),
        ("mechanism", "l", lambda row: (row["title"], row["title"])),
        ("paper", "l", lambda row: (row["paper"], row["paper"])),
        ("family", "l", lambda row: (row["family"], row["family"].replace("_", " + "))),
        ("parameters", "", lambda row: _number(row["parameters"], "{:,.0f}")),
        ("kMAC", "", lambda row: _number(row["macs"] / 1e3, "{:,.1f}")),
        ("SQNR u8 dB", "", lambda row: _number(row["sqnr_db"]["u8"], "{:.1f}")),
        ("SQNR s8 dB", "", lambda row: _number(row["sqnr_db"]["s8"], "{:.1f}")),
        ("gate", "l", lambda row: (row["gate_policy"] or "", row["gate_policy"] or "-")),
        *_accuracies(rows),
    ]
    for name in targets:
        found = {key for row in rows for key in row["targets"].get(name, {})}
        if "int8_ms" in found:
            columns += [
                (f"{name} fp32 ms", "", at(name, "fp32_ms", lambda value: _number(value, "{:.3f}"))),
                (f"{name} INT8 ms", "", at(name, "int8_ms", lambda value: _number(value, "{:.3f}"))),
            ]
        if "sqnr_db" in found:
            columns.append((f"{name} SQNR dB", "", at(name, "sqnr_db", lambda v: _number(v, "{:.1f}"))))
        if any(row["targets"].get(name, {}).get("tax") is not None for row in rows):
            columns.append((f"{name} tax", "", at(name, "tax", lambda value: _number(value, "{:+.0%}"))))
            columns.append((f"{name} us a place", "", _added(name)))
        if "engine_bytes" in found:
            columns.append(
                (
                    f"{name} engine KiB",
                    "",
                    at(name, "engine_bytes", lambda v: _number(None if v is None else v / 1024, "{:,.0f}")),
                )
            )
        columns.append((f"{name} verdict", "l w", at(name, "verdict", lambda v: (v or "", v or "-"))))
    columns += [
        ("used as", "l", lambda row: (row["contract"], row["contract"])),
        ("measured", "l", lambda row: (row.get("measured", ""), row.get("measured", ""))),
    ]
    return columns


def added_us(result: Mapping[str, Any]) -> float | None:
    """Return the microseconds that a mechanism adds to a target's INT8 network at each of its places."""
    if result.get("tax") is None or not result.get("places"):
        return None
    return float(1e3 * (result["network_int8_ms"] - result["bare_int8_ms"]) / result["places"])


def _added(target: str) -> Callable[[Mapping[str, Any]], Value]:
    return lambda row: _number(added_us(row["targets"].get(target, {})), "{:,.0f}")


def _accuracies(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    columns: list[Column] = []
    if any(row.get("accuracy") for row in rows):
        for key, title in (("fp32", "top-1 float"), ("ptq", "top-1 PTQ"), ("qat", "top-1 QAT")):
            columns.append((title, "", _accuracy(key)))
    return columns


def _accuracy(key: str) -> Callable[[Mapping[str, Any]], Value]:
    return lambda row: _number((row.get("accuracy") or {}).get(f"top1_{key}"), "{:.1%}")


def _number(value: float | None, form: str) -> Value:
    if value is None or not math.isfinite(value):
        return "", "-"
    return repr(float(value)), form.format(value)


def _cell(value: Value, style: str) -> str:
    key, shown = value
    return f'<td class="{style}" data-key="{_text(key)}">{_text(shown)}</td>'


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _plot(rows: Sequence[Mapping[str, Any]], target: str) -> str:
    """Draw SQNR against tax for one target, or nothing where it was not timed."""
    points = [
        (row["targets"][target]["tax"], row["sqnr_db"]["u8"], row["name"], row["family"])
        for row in rows
        if row["targets"].get(target, {}).get("tax") is not None and row["sqnr_db"]["u8"] is not None
    ]
    if len(points) < 2:
        return ""
    left, top, width, height = 50, 14, 560, 300
    # Taxes differ by two orders of magnitude: times of networks are shown on a logarithmic axis.
    ratios = [math.log10(max(1.0 + tax, 0.1)) for tax, *_ in points]
    low_x, high_x = min(ratios) - 0.03, max(ratios) + 0.1
    levels = [sqnr for _, sqnr, *_ in points]
    low_y, high_y = min(levels) - 2, max(levels) + 2
    parts = []
    last = -math.inf
    for tick in (1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000):
        x = left + width * (math.log10(tick) - low_x) / (high_x - low_x)
        if left <= x <= left + width:
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + height}" stroke="var(--line)"/>'
            )
            if x - last >= _TICK_SPACE:
                shown = f"{tick - 1:+.0%}" if tick < 10 else f"x {tick}"
                place = f'x="{x:.1f}" y="{top + height + 16}" text-anchor="middle"'
                parts.append(f"<text {place}>{shown}</text>")
                last = x
    for level in range(math.ceil(low_y / 5) * 5, int(high_y) + 1, 5):
        y = top + height * (high_y - level) / (high_y - low_y)
        parts.append(
            f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{level}</text>'
        )
    places = [
        (
            left + width * (ratio - low_x) / (high_x - low_x),
            top + height * (high_y - level) / (high_y - low_y),
        )
        for ratio, level in zip(ratios, levels, strict=True)
    ]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for (x, y), (tax, sqnr, name, family) in zip(places, points, strict=True):
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var({_COLORS.get(family, "--a")})">'
            f"<title>{_text(name)}: {tax:+.0%}, {sqnr:.1f} dB</title></circle>"
        )
        where = _free_place(x, y, _LETTER * len(name), taken)
        # Where there is no room for a name, it is in the point's title.
        if where is not None:
            parts.append(f'<text x="{where[0]:.1f}" y="{where[1]:.1f}">{_text(name)}</text>')
    title = f"SQNR in u8 (dB) against the tax on {target} (logarithmic); colours are families"
    return (
        f'<figure><svg viewBox="0 0 {left + width + 70} {top + height + 26}" role="img" '
        f'aria-label="{_text(title)}">{"".join(parts)}</svg><figcaption>{_text(title)}</figcaption></figure>'
    )


_TICK_SPACE, _LETTER, _LINE = 44, 6.1, 11
Box = tuple[float, float, float, float]


def _free_place(x: float, y: float, width: float, taken: list[Box]) -> tuple[float, float] | None:
    """Return where a point's name fits beside, above or below it, and take that place; None where it does not."""
    for dx, dy in ((6, 4), (-6 - width, 4), (-width / 2, -7), (-width / 2, 16), (6, -5), (6, 14)):
        box = (x + dx, y + dy - _LINE + 2, x + dx + width, y + dy + 2)
        if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            taken.append(box)
            return x + dx, y + dy
    return None
