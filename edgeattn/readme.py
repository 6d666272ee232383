"""Write the parts of README.md that follow from the code and from saved reports.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end generated -->``. Measured
figures come from ``recipes/reports/*.json``: reports of real runs, kept without their bulk; and from
``recipes/benchmarks/*.json``: what the benchmarks wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.artifact import read_json, write_bytes
from edgeattn.errors import ArtifactError, close_matches_hint
from edgeattn.readme_benchmarks import attention_tax, lowering_passes, tensorrt_kernels
from edgeattn.readme_tables import cell, markdown, processor
from edgeattn.report import Report, load_report
from edgeattn.report_catalogue import added_us
from edgeattn.report_ladder import LADDER_HEADER, LADDER_SAYS, ladder_rows
from edgeattn.report_parity import PARITY_HEADER, parity_rows

if TYPE_CHECKING:
    from edgeattn.report import LatencyResult, TargetResult

__all__ = ["GENERATORS", "keep_report", "update_readme"]

_BLOCK = re.compile(
    r"(?P<begin><!-- generated: (?P<name>[a-z-]+) -->\n)(?P<body>.*?)(?P<end><!-- end generated -->)",
    re.DOTALL,
)
_KEPT_ENVIRONMENT = ("cpu", "gpus", "os", "python", "packages")
_NOTHING = "-"
_CATALOGUE_TARGETS = ("ort-cpu", "openvino-cpu")


def update_readme(path: Path, *, check: bool = False) -> bool:
    """Rewrite the generated parts of a file.

    Args:
        path: The file; ``recipes`` lies beside it.
        check: Only find out whether something would change.

    Returns:
        Whether something changed, or would.

    Raises:
        ArtifactError: If the file cannot be read, or its markers do not match or name no generator.
    """
    try:
        before = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ArtifactError(f"Cannot read {path}: {exc.strerror}. Run this in the project's folder.") from exc
    opened, closed = before.count("<!-- generated: "), before.count("<!-- end generated -->")
    if opened != closed or opened != len(_BLOCK.findall(before)):
        raise ArtifactError(
            f"{path} has {opened} markers '<!-- generated: NAME -->' and {closed} ends; pair them."
        )

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in GENERATORS:
            raise ArtifactError(f"{path}: nothing generates {name!r}. {close_matches_hint(name, GENERATORS)}")
        return f"{match['begin']}\n{GENERATORS[name](path.parent)}\n\n{match['end']}"

    after = _BLOCK.sub(fill, before)
    if after != before and not check:
        write_bytes(path, after.encode())
    return after != before


def keep_report(run: Path, folder: Path) -> Path:
    """Save a run's report without its bulk, for the tables.

    Returns:
        The file written: ``folder/<name of the recipe>.json``.
    """
    report = load_report(run)
    compact = report.model_copy(deep=True)
    compact.training, compact.stages = [], []
    compact.environment = {k: report.environment[k] for k in _KEPT_ENVIRONMENT if k in report.environment}
    for target in compact.targets.values():
        target.layers, target.layer_times, target.build = [], [], {}
        for latency in (target.latency.int8, target.latency.fp32):
            if latency is not None:
                latency.properties = {}
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", compact.name):
        raise ArtifactError(
            f"{run}: {compact.name!r} cannot be a file's name. Is it a report that a recipe made?"
        )
    text = compact.model_dump_json(indent=1, exclude_defaults=True, exclude_none=True)
    return write_bytes(folder / f"{compact.name}.json", (text + "\n").encode())


# --------------------------------------------------------------------------------- generators


def _results(root: Path) -> str:
    reports = _saved_reports(root)
    machines = sorted({_machine(report) for report in reports})
    rows = [
        (*row, str(1 + machines.index(_machine(report))))
        for report in reports
        for row in _result_rows(report)
    ]
    if not rows:
        return "No run is saved yet: `edgeattn readme --keep runs/quickstart` saves one."
    header = (
        "recipe",
        "target",
        "exact grids",
        "FP32 top-1",
        "INT8 top-1",
        "delta",
        "agreement",
        "SQNR",
        "INT8 p50",
        "speed-up",
        "machine",
    )
    return (
        markdown(header, rows, left=3)
        + "\n\nBatch 1. Exact grids: whether the run was made with `quant.ptq.exact`. Delta in points of top-1; agreement is the share of images with FP32's answer; speed-up is the "
        "median of FP32 over INT8 measured in alternation, with its 95 % interval. Where an engine could only be "
        "built, its accuracy is that of the same QDQ file in another runtime (marked *). Machines: "
        + "; ".join(f"{number} {machine}" for number, machine in enumerate(machines, start=1))
        + "."
    )


def _result_rows(report: Report) -> Iterable[tuple[str, ...]]:
    for name, target in report.targets.items():
        star = "*" if target.checked_by else ""
        yield (
            report.name,
            name if target.status == "ok" else f"{name} ({target.status})",
            "yes" if report.has_exact_grids else "no",
            f"{_percent(report.fp32.top1)} (n = {report.fp32.n:,})",
            _percent(target.top1) + star,
            _NOTHING if target.top1_delta is None else f"{100 * target.top1_delta:+.2f}",
            _percent(target.agreement) + star,
            _NOTHING if target.sqnr_db is None else f"{target.sqnr_db:.1f} dB",
            _milliseconds(target.latency.int8),
            _speedup(target),
        )


def _parity(root: Path) -> str:
    rows = parity_rows(root / "recipes" / "parity")
    if not rows:
        return "No comparison is saved yet: `edgeattn readme --keep-parity RUN PRINTED.json` saves one."
    return markdown(PARITY_HEADER, rows, left=3)


def _ladder(root: Path) -> str:
    path = root / "recipes" / "reports" / "imagenet_mobilenetv2_ptq.json"
    if not path.is_file():
        return "No run is saved yet: `edgeattn readme --keep runs/imagenet_mobilenetv2_ptq` saves one."
    report = load_report(path)
    table = markdown(LADDER_HEADER, ladder_rows(report), left=1)
    return f"{table}\n\n{LADDER_SAYS}. Measured on: {_machine(report)}."


def _quickstart(root: Path) -> str:
    from edgeattn.cli_output import report_text

    saved = [report for report in _saved_reports(root) if report.name == "quickstart"]
    if not saved:
        return "No run is saved yet: `edgeattn readme --keep runs/quickstart` saves one."
    folder = Path("runs/quickstart")
    text = report_text(saved[0], folder / "report.json", folder / "report.html", width=110)
    return f"```text\n{text}\n```"


def _attentions(root: Path) -> str:
    from edgeattn.attention import attentions

    rows = []
    for entry in (attentions.get(name) for name in attentions):
        listed = entry.paper[:4].isdigit()
        link = f"[{entry.paper}](https://arxiv.org/abs/{entry.paper})" if listed else entry.paper
        use = entry.placement if entry.contract == "map" else entry.contract
        forms = ", ".join(entry.edge_forms) or _NOTHING
        rows.append((f"`{entry.name}`", entry.title, link, entry.family.replace("_", " + "), use, forms))
    return markdown(("name", "mechanism", "paper", "family", "place or use", "exact forms"), rows, left=6)


def _catalogue(root: Path) -> str:
    path = root / "recipes" / "catalogue" / "catalogue.json"
    if not path.is_file():
        return "No catalogue is saved yet: run `edgeattn catalogue --out recipes/catalogue`."
    value = read_json(path)
    rows = []
    try:
        for row in value["rows"]:
            cells = [f"`{row['name']}`", _decibels(row["sqnr_db"]["u8"]), _decibels(row["sqnr_db"]["s8"])]
            for name in _CATALOGUE_TARGETS:
                result = row["targets"].get(name, {})
                cells.append(_NOTHING if result.get("tax") is None else f"{100 * result['tax']:+.0f} %")
                cells.append(_NOTHING if (added := added_us(result)) is None else f"{added:,.0f} us")
                cells.append(cell(str(result.get("verdict", _NOTHING))))
            rows.append((*cells, _accuracies(row.get("accuracy"))))
        cpu, settings = value["environment"]["cpu"], value["settings"]
    except (KeyError, TypeError) as exc:
        raise ArtifactError(
            f"{path} is no catalogue: {exc!r}. Run `edgeattn catalogue --out recipes/catalogue` again."
        ) from exc
    header = ["name", "SQNR u8", "SQNR s8"]
    for name in _CATALOGUE_TARGETS:
        header += [f"{name} tax", "a place", f"{name} verdict"]
    header.append("digits: float, PTQ, QAT")
    bare = _accuracies(value.get("bare_accuracy"))
    return (
        markdown(tuple(header), rows, left=1)
        + f"\n\nTax in MobileNetV2 {settings['network_width']} at {settings['network_size']} pixels, "
        f"{settings['threads']} thread, in the exact form that each target runs fastest, on {cell(str(cpu['model']))} "
        f"({', '.join(cpu['instruction_sets'])}); so small a network is done so soon that each kernel of a gate shows. A place: what is added, by the number of "
        "the mechanism's modules. "
        "SQNR is that of exact integer arithmetic. Digits: top-1 in per cent on 359 handwritten digits, every "
        f"network trained for a few epochs from the same weights; without attention: {bare}."
    )


def _accuracies(accuracy: Mapping[str, Any] | None) -> str:
    names = ("top1_fp32", "top1_ptq", "top1_qat")
    if accuracy is None or any(accuracy.get(name) is None for name in names):
        return _NOTHING
    return ", ".join(f"{100 * accuracy[name]:.1f}" for name in names)


def _decibels(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1f} dB"


def _recipes(root: Path) -> str:
    import yaml

    rows = []
    for path in sorted((root / "recipes").glob("*.yaml")):
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows.append((f"[{path.stem}](recipes/{path.name})", str(value.get("description", ""))))
    return markdown(("recipe", "what it does"), rows, left=2)


def _commands(root: Path) -> str:
    from edgeattn.cli import app

    rows = [
        (f"`edgeattn {command.callback.__name__}`", (command.callback.__doc__ or "").split("\n")[0])
        for command in app.registered_commands
        if command.callback is not None and not command.hidden
    ]
    return markdown(("command", "does"), rows, left=2)


GENERATORS: dict[str, Callable[[Path], str]] = {
    "attention-tax": attention_tax,
    "attentions": _attentions,
    "catalogue": _catalogue,
    "commands": _commands,
    "ladder": _ladder,
    "lowering-passes": lowering_passes,
    "parity": _parity,
    "quickstart": _quickstart,
    "recipes": _recipes,
    "results": _results,
    "tensorrt-kernels": tensorrt_kernels,
}
"""Name of a generated part -> what writes it, given the project's folder."""


# ------------------------------------------------------------------------------------ helpers


def _saved_reports(root: Path) -> list[Report]:
    return [load_report(path) for path in sorted((root / "recipes" / "reports").glob("*.json"))]


def _machine(report: Report) -> str:
    cpu = report.environment.get("cpu")
    gpus = report.environment.get("gpus")
    parts = [processor(cpu) if isinstance(cpu, dict) else "a machine that was not recorded"]
    parts += [cell(str(gpu)) for gpu in gpus] if isinstance(gpus, list) else []
    return ", ".join(part for part in parts if part)


def _percent(share: float | None) -> str:
    return _NOTHING if share is None else f"{100 * share:.2f} %"


def _milliseconds(latency: LatencyResult | None) -> str:
    if latency is None:
        return _NOTHING
    return f"{latency.p50_ms:.3f} ms, {latency.threads} thread{'' if latency.threads == 1 else 's'}"


def _speedup(target: TargetResult) -> str:
    if target.speedup is None:
        return _NOTHING
    if target.speedup_interval is None:
        return f"{target.speedup:.2f}x"
    low, high = target.speedup_interval
    return f"{target.speedup:.2f}x ({low:.2f} to {high:.2f})"
