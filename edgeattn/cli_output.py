"""Results on standard output: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.cli_errors import plain_text

if TYPE_CHECKING:
    from rich.console import Console

    from edgeattn.attention import AttentionInfo
    from edgeattn.report import LatencyResult, Report, SensitivityResult, TargetResult
    from edgeattn.targets import TargetStatus

__all__ = [
    "open_console",
    "print_attentions",
    "print_bench",
    "print_json",
    "print_line",
    "print_report",
    "print_steps",
    "print_table",
    "print_targets",
    "print_tuning",
    "report_text",
]

_NOTHING = "-"


def print_json(value: Any) -> None:
    """Print JSON; numbers that JSON lacks become null."""
    sys.stdout.write(json.dumps(_jsonable(value), indent=2, allow_nan=False) + "\n")


def print_report(report: Report, json_path: Path, html_path: Path) -> None:
    """Print what every target did, the verdict with its reasons, and where the files are."""
    _write_report(open_console(), report, json_path, html_path)


def report_text(report: Report, json_path: Path, html_path: Path, *, width: int = 120) -> str:
    """Return what `print_report` prints where there is no terminal, without trailing blanks."""
    from rich.console import Console

    stream = io.StringIO()
    _write_report(Console(file=stream, width=width), report, json_path, html_path)
    return "\n".join(line.rstrip() for line in stream.getvalue().strip().splitlines())


def _write_report(console: Console, report: Report, json_path: Path, html_path: Path) -> None:
    from edgeattn.cli_coverage import print_coverage
    from edgeattn.report_ladder import LADDER_HEADER, LADDER_SAYS, ladder_rows
    from edgeattn.report_text import device_text, outputs_text, slower_text

    float_top1 = "" if report.fp32.top1 is None else f", float top-1 {_percent(report.fp32.top1)}"
    console.print(
        f"\n{plain_text(report.name)}: {report.fp32.n} images{float_top1}", highlight=False, markup=False
    )
    rows = [_target_row(name, target) for name, target in report.targets.items()]
    header = ("target", "status", "top-1", "delta", "agreement", "SQNR", "INT8 p50", "FP32 p50", "speed-up")
    print_table(console, header, rows, left=2)
    for name, target in report.targets.items():
        print_coverage(console, name, target.build)
    for name, target in report.targets.items():
        for text in (target.reason, target.error):
            if text:
                print_line(console, f"{name}: {text}")
        if where := device_text(target.build):
            print_line(console, f"{name}: {where}")
        if target.checked_by:
            print_line(console, f"{name}: accuracy of the same QDQ file, run by {target.checked_by}")
        if ratios := outputs_text(target):
            print_line(console, f"{name}: SQNR by output: {ratios}")
        for text in (target.graph_warning, slower_text(name, target)):
            if text:
                print_line(console, f"{name}: {text}", "yellow")
    if rows := ladder_rows(report):
        print_line(console, f"{LADDER_SAYS}:")
        print_table(console, LADDER_HEADER, rows, left=1)
    for profile, items in report.sensitivity.items():
        if items:
            print_line(console, _most_sensitive(profile, items))
    if report.domain and report.domain.warning:
        print_line(console, report.domain.warning, "yellow")
    for reason in report.reasons:
        where = f"{reason.target}: " if reason.target else ""
        print_line(
            console,
            f"{'ok  ' if reason.passed else 'MISS'} {where}{reason.text}",
            "" if reason.passed else "red",
        )
    print_line(
        console, f"verdict: {report.verdict}", "bold green" if report.verdict == "pass" else "bold red"
    )
    print_line(console, f"{json_path}\n{html_path}")


def _most_sensitive(profile: str, items: Sequence[SensitivityResult]) -> str:
    """Name what costs the outputs most. Gains do not add up: each is measured with all others in INT8."""
    most = sorted(items, key=lambda item: item.gain_db or 0.0, reverse=True)[:3]
    named = ", ".join(f"{item.module or item.name} {item.gain_db or 0.0:+.2f} dB" for item in most)
    return f"{profile}: most sensitive of {len(items)} layers and gates (gain with one in float): {named}"


def _target_row(name: str, target: TargetResult) -> tuple[str, ...]:
    speedup = _NOTHING if target.speedup is None else f"{target.speedup:.2f}x"
    return (
        name,
        target.status,
        _percent(target.top1),
        _NOTHING if target.top1_delta is None else f"{100 * target.top1_delta:+.2f}",
        _percent(target.agreement),
        _NOTHING if target.sqnr_db is None else f"{target.sqnr_db:.1f} dB",
        _p50(target.latency.int8),
        _p50(target.latency.fp32),
        speedup,
    )


def print_steps(steps: Iterable[Any]) -> None:
    """Print what a run will do, and why it will leave something out."""
    rows = [(step.name, f"skipped: {step.why_skipped}" if step.why_skipped else step.what) for step in steps]
    print_table(open_console(), ("step", "what"), rows, left=2)


def print_attentions(entries: Iterable[AttentionInfo]) -> None:
    """Print the catalogue of mechanisms."""
    rows = []
    for entry in entries:
        forms = [entry.default_form, *(form for form in entry.edge_forms if form != entry.default_form)]
        paper = f"arXiv {entry.paper}" if entry.paper[:4].isdigit() else entry.paper
        use = entry.placement if entry.contract == "map" else entry.contract
        what = ", ".join(forms) if entry.edge_forms else _NOTHING
        rows.append((entry.name, entry.title, entry.family.replace("_", "+"), paper, use, what))
    print_table(
        open_console(),
        ("name", "mechanism", "family", "paper", "place or use", "exact forms (default first)"),
        rows,
        left=6,
    )


def print_targets(statuses: Iterable[TargetStatus]) -> None:
    """Print what each target can do on this machine, and what would help."""
    rows = []
    for status in statuses:
        here = status.availability
        why = here.reason
        if here.install and here.install not in why:
            why += f" ({here.install})"
        rows.append(
            (status.name, status.profile, _yes(here.can_build), _yes(here.can_run), here.version, why)
        )
    print_table(open_console(), ("target", "profile", "builds", "runs", "version", "why not"), rows, left=6)


def print_bench(result: Mapping[str, Any]) -> None:
    """Print interleaved latencies and their ratios."""
    console = open_console()
    latencies: Mapping[str, Any] = result.get("latencies", {})
    ratios: Mapping[str, Any] = result.get("ratios", {})
    rows = []
    for name, latency in latencies.items():
        ratio = ratios.get(name)
        text = "baseline"
        if ratio is not None:
            low, high = ratio["interval"]
            text = f"{ratio['ratio']:.3f} ({low:.3f} to {high:.3f})"
        times = (f"{latency[key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms"))
        rows.append((name, *times, str(latency["runs"]), str(latency["threads"]), text))
    header = ("engine", "p50 ms", "p90 ms", "p99 ms", "runs", "threads", "ratio (95 % interval)")
    print_table(console, header, rows, left=1)


def print_tuning(tuning: Mapping[str, Any], path: Path) -> None:
    """Print every candidate with its ratio to the best one before it, and what was chosen."""
    console = open_console()
    if tuning["key"].get("rank_by") == "dla":
        _print_dla_tuning(console, tuning, path)
        return
    rows = []
    for item in tuning["candidates"]:
        low, high = item["ratio_interval"]
        ratio = f"{item['ratio']:.3f} ({low:.3f} to {high:.3f})"
        kept = "yes" if item["kept"] else ""
        timed = item["latency_ms"] is not None
        if not timed:
            ratio = f"{item['ratio']:.3f}"
        cost = f"{item['latency_ms']:.3f}" if timed else str(item["kernels"])
        moved = () if timed else (f"{item['bytes_moved'] / 1024:.0f}",)
        gates = item["policy"]
        if item["gates"]:
            gates = f"{_counted(len(item['gates']), 'gate')} {next(iter(item['gates'].values()))}"
        rows.append((item["stage"], _forms(item["forms"]), gates, cost, *moved, ratio, kept))
    counted = "ranked_by" in tuning["key"]
    cost_header = ("kernels", "KiB moved") if counted else ("p50 ms",)
    ratio_header = "ratio to the best before" + ("" if counted else " (95 % interval)")
    if rows:
        print_table(console, ("stage", "form", "gates", *cost_header, ratio_header, "kept"), rows, left=3)
    else:
        print_line(console, "one form and one gate policy: there was nothing to compare")
    key = tuning["key"]
    device = f" ({key['device']})" if key.get("device") else ""
    threads = f"{key['threads']} thread{'s' if key['threads'] > 1 else ''}"
    if counted and rows:
        print_line(
            console, "nothing could be timed here: ranked by the kernels of the engine, then by bytes moved"
        )
    print_line(
        console, f"fastest on {key['target']} {key['runtime']}{device}, {threads}: {_forms(tuning['forms'])}"
    )
    print_line(console, f"gate policies from the fastest on: {', '.join(tuning['policies'])}")
    print_line(console, str(path))


def print_gates(record: Mapping[str, Any], path: Path) -> None:
    """Print the policy of every gate, what it gains in time, and what it costs in accuracy."""
    console = open_console()
    profiles = list(record["trials"][0]["sqnr_db"])
    rows = []
    for row in record["rows"]:
        for option in row["options"]:
            low, high = option["time_interval"]
            time = (
                f"{option['time']:+.2%} ({low:+.2%} to {high:+.2%})" if low < high or option["time"] else "-"
            )
            costs = [_decibels(option["noise"][profile]) for profile in profiles]
            taken = ("recipe" if row["pinned"] else "yes") if option["policy"] == row["policy"] else ""
            rows.append((row["module"], option["policy"], time, *costs, taken))
    alone = (f"SQNR dB of it alone, {profile}" for profile in profiles)
    print_table(console, ("gate", "policy", "time (95 % interval)", *alone, "taken"), rows, left=2)
    rows = [
        (
            f"{trial['policy']}, {_counted(len(trial['gates']), 'gate')} otherwise"
            if trial["gates"]
            else trial["policy"],
            *(f"{trial['agreement'][profile]:.2%}" for profile in profiles),
            *(f"{trial['sqnr_db'][profile]:.1f}" for profile in profiles),
            "yes" if trial["keeps"] else "no",
        )
        for trial in record["trials"]
    ]
    measured = [f"{what}, {profile}" for what in ("agreement", "SQNR dB") for profile in profiles]
    print_table(
        console, ("measured on half of the calibration images", *measured, "keeps bounds"), rows, left=1
    )
    if record["ratio"] is not None:
        low, high = record["ratio_interval"]
        print_line(console, f"the mix takes {record['ratio']:.3f} of the time ({low:.3f} to {high:.3f})")
    print_line(console, record["why"])
    print_line(console, str(path))


def _decibels(noise: float) -> str:
    return f"{-10 * math.log10(noise):.1f}" if noise > 0 else "no error"


def _print_dla_tuning(console: Console, tuning: Mapping[str, Any], path: Path) -> None:
    rows = []
    for item in tuning["candidates"]:
        # Reasons begin with the operation; their shapes differ from layer to layer.
        kinds: Counter[str] = Counter()
        for reason, count in item["fallbacks"].items():
            kinds[reason.partition(":")[0]] += count
        why = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
        kept = "yes" if item["kept"] else ""
        rows.append((_forms(item["forms"]), str(item["loadables"]), str(item["gpu_parts"]), kept, why))
    print_table(console, ("form", "loadables", "GPU parts", "kept", "what falls back"), rows, left=5)
    chosen = next(item for item in tuning["candidates"] if item["kept"])
    avoids = [_forms(item["forms"]) for item in tuning["candidates"] if not item["gpu_parts"]]
    said = f"without fallback: {', '.join(avoids)}" if avoids else "every form falls back to the GPU"
    print_line(console, f"by NVIDIA's tables, means spelled as small pools (`edgeattn lint --fix`): {said}")
    fits = "fits" if chosen["loadables"] <= 16 else "does not fit"
    print_line(
        console,
        f"fewest hand-overs: {_forms(tuning['forms'])}; {_counted(chosen['loadables'], 'loadable')} of 16 ({fits})",
    )
    print_line(console, str(path))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _forms(forms: Mapping[str, str]) -> str:
    """Return the form of the mechanism, and how many modules differ from it."""
    names = list(forms.values())
    others = Counter(names[1:])
    return names[0] + "".join(f", {name} in {count}" for name, count in others.items() if name != names[0])


# ------------------------------------------------------------------------------------ helpers


def open_console() -> Console:
    """Return a console on standard output."""
    from rich.console import Console

    class PipeConsole(Console):
        """Leaves a closed pipe to the error handler, which ends quietly; rich would exit with 1."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    # A pipe or a log has no width; what is written there should not be cut at 80 columns.
    return PipeConsole() if sys.stdout.isatty() else PipeConsole(width=140)


def print_table(console: Console, header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> None:
    """Print rows under a header, the first `left` columns to the left and numbers to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(header):
        table.add_column(title, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        # Text, not str: brackets in a name are not markup.
        table.add_row(*(Text(plain_text(cell)) for cell in row))
    console.print(table)


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print one line that may hold anything: control characters and markup are shown, not obeyed."""
    console.print(plain_text(text), style=style or None, markup=False, highlight=False, soft_wrap=True)


def _percent(share: float | None) -> str:
    return _NOTHING if share is None else f"{100 * share:.2f} %"


def _p50(latency: LatencyResult | None) -> str:
    return _NOTHING if latency is None else f"{latency.p50_ms:.3f} ms"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _jsonable(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
