"""The catalogue: every mechanism on every target, measured, one cached result for each mechanism.

A mechanism is measured twice: alone before the 1x1 convolution that reads it (or in the small network that
stands for it), for what it loses in INT8 and which operators fall back; and in a small MobileNetV2 at its
authors' places, for what it adds to the time of a network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from edgeattn.artifact import read_json, write_json
from edgeattn.attention import attentions
from edgeattn.errors import ArtifactError, RecipeError, close_matches_hint
from edgeattn.extras import installed_version, require
from edgeattn.lower.preferences import preferred_forms
from edgeattn.measure import describe_environment
from edgeattn.progress import Progress, SilentProgress
from edgeattn.targets import get_target, target_names

__all__ = [
    "CATALOGUE_TARGETS",
    "CatalogueSettings",
    "choose_names",
    "choose_targets",
    "load_catalogue",
    "load_rows",
    "make_catalogue",
    "read_accuracy",
    "save_table",
    "summarize",
]

CATALOGUE_TARGETS = ("ort-cpu", "openvino-cpu", "reference", "tensorrt-rtx")
"""Targets of the table; one that is not there is named with its reason."""
_SCHEMA_VERSION = 1


class CatalogueSettings(BaseModel):
    """What is measured, and how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    targets: tuple[str, ...] = CATALOGUE_TARGETS
    channels: int = Field(32, ge=8, description="Channels of the map that a module alone takes.")
    size: int = Field(14, ge=4, description="Its height and width.")
    network_width: float = Field(0.35, gt=0, description="Of the MobileNetV2 that the tax is measured in.")
    network_size: int = Field(96, ge=32, description="Its input's height and width.")
    images: int = Field(16, ge=8, description="Random inputs to calibrate with, and as many to measure on.")
    timed_runs: int = Field(160, ge=16, description="Timed inferences of each engine.")
    rounds: int = Field(8, ge=2, description="How often engines that are compared take turns.")
    threads: int = Field(1, ge=1)
    seed: int = 0


def choose_names(only: Sequence[str]) -> tuple[str, ...]:
    """Return the mechanisms to measure: those named, or all.

    Raises:
        RecipeError: If a name is unknown.
    """
    for name in only:
        if name not in attentions:
            hint = close_matches_hint(name, attentions)
            raise RecipeError(f"Unknown attention {name!r}. {hint}")
    return tuple(only) or attentions.names()


def choose_targets(names: Sequence[str]) -> tuple[str, ...]:
    """Return the targets to measure on.

    Raises:
        RecipeError: If there is no such target, here or elsewhere.
    """
    known = dict.fromkeys((*target_names(), *CATALOGUE_TARGETS))
    for name in names:
        if name not in known:
            raise RecipeError(f"Unknown target {name!r}. {close_matches_hint(name, known)}")
    return tuple(names)


def load_catalogue(path: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """Read a saved table, or the rows of some mechanisms.

    Raises:
        ArtifactError: If the file is no catalogue.
        RecipeError: If a name is unknown.
    """
    names = choose_names(only)
    table = read_json(path)
    if not isinstance(table, dict) or table.get("schema_version") != _SCHEMA_VERSION or "rows" not in table:
        raise ArtifactError(f"{path} is no catalogue of this version; `edgeattn catalogue` writes one.")
    rows = [row for row in table["rows"] if row["name"] in names]
    return {**table, "rows": rows, "summary": summarize(rows)}


def make_catalogue(
    out: Path,
    settings: CatalogueSettings | None = None,
    *,
    only: Sequence[str] = (),
    again: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure what was not measured before with these settings; return the whole table.

    Args:
        out: Folder of the results: ``rows/NAME.json``, and ``catalogue.json``.
        settings: What and how long.
        only: Names; empty means all.
        again: Measure what has a result, too.
        progress: Hears how far it is.

    Raises:
        MissingExtraError: If torch is absent.
        RecipeError: If a name is unknown.
    """
    settings = settings or CatalogueSettings()
    names = choose_names(only)
    require("torch", purpose="measuring the catalogue")
    from edgeattn.pipeline_catalogue_bench import Bench
    from edgeattn.pipeline_catalogue_row import measure_row, measure_tax

    progress = progress or SilentProgress()
    rows_folder = out / "rows"
    rows_folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(settings)
    try:
        for done, name in enumerate(names):
            progress.update("modules", done, len(names))
            fingerprint = _fingerprint(name, settings)
            old = _find_row(out, name)
            if not again and old is not None and old.get("fingerprint") == fingerprint:
                continue
            row = measure_row(name, bench)
            write_json(rows_folder / f"{name}.json", {**row, "fingerprint": fingerprint, "has_tax": False})
            progress.note(f"{name}: {describe_verdicts(row)}")
        progress.update("modules", len(names), len(names))
        # Networks take longer than modules: the table is whole before they begin.
        for done, name in enumerate(names):
            progress.update("networks", done, len(names))
            saved = _find_row(out, name)
            if saved is None or saved.get("has_tax"):
                continue
            ran = [target for target, result in saved["targets"].items() if result["status"] == "ok"]
            for target, tax in measure_tax(name, ran, saved.get("gate_policy") or "int8", bench).items():
                saved["targets"][target] |= tax
            write_json(rows_folder / f"{name}.json", {**saved, "has_tax": True})
        progress.update("networks", len(names), len(names))
    finally:
        bench.close()
        # Also when it was interrupted: what is measured so far is a table.
        table = _write_table(out, settings)
    return table


def _write_table(out: Path, settings: CatalogueSettings) -> dict[str, Any]:
    return save_table(
        out,
        {
            "schema_version": _SCHEMA_VERSION,
            "settings": settings.model_dump(mode="json"),
            "environment": describe_environment(),
            "targets": {name: _describe_target(name) for name in settings.targets},
        },
    )


def save_table(out: Path, table: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``catalogue.json`` with the rows that are there; return it.

    Args:
        out: Folder of the results.
        table: What the file says besides rows, summary and accuracies.
    """
    rows = load_rows(out)
    result = {**table, "bare_accuracy": read_accuracy(out, "none"), "rows": rows, "summary": summarize(rows)}
    write_json(out / "catalogue.json", result)
    return result


def load_rows(out: Path) -> list[dict[str, Any]]:
    """Return the saved rows, in the order of the registry."""
    found = ((name, _find_row(out, name)) for name in attentions)
    return [{**row, "accuracy": read_accuracy(out, name)} for name, row in found if row is not None]


def read_accuracy(out: Path, name: str) -> dict[str, Any] | None:
    """Return what was found when a mechanism was trained, or the bare network (``"none"``); None if never."""
    path = out / "accuracy" / f"{name}.json"
    if path.is_file():
        value = read_json(path)
    elif name == "none":
        value = _read_table(out).get("bare_accuracy")
    else:
        value = (_find_row(out, name) or {}).get("accuracy")
    if value is not None and not isinstance(value, dict):
        raise ArtifactError(f"{path} is no accuracy of a catalogue; delete it, and it is measured again.")
    return value


def describe_verdicts(row: Mapping[str, Any]) -> str:
    """Return one line about a row."""
    return "; ".join(f"{name} {result['verdict']}" for name, result in row["targets"].items())


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count what the table shows.

    Returns:
        ``mechanisms``; ``measured_unknown``: rows with a target without a verdict; by CPU target, how many of
        those that keep their input's shape run in INT8; ``least_gate_sqnr_db_u8`` and whose it is.
    """
    keeps_shape = [
        row for row in rows if row["family"] in ("channel", "spatial", "channel_spatial", "branch")
    ]
    cpu = ("ort-cpu", "openvino-cpu")
    runs = {
        name: sum(row["targets"].get(name, {}).get("status") == "ok" for row in keeps_shape) for name in cpu
    }
    both = sum(all(row["targets"].get(name, {}).get("status") == "ok" for name in cpu) for row in keeps_shape)
    gates = {
        row["name"]: row["sqnr_db"]["u8"]
        for row in rows
        if row["gates"] and row.get("sqnr_db", {}).get("u8") is not None
    }
    least = min(gates, key=gates.__getitem__) if gates else None
    return {
        "mechanisms": len(rows),
        "without_verdict": [
            row["name"] for row in rows if any(not r.get("verdict") for r in row["targets"].values())
        ],
        "keep_their_shape": len(keeps_shape),
        "run_int8": runs,
        "run_int8_on_both_cpus": both,
        "gates": len(gates),
        "least_gate_sqnr_db_u8": gates[least] if least else None,
        "least_gate": least,
    }


def _describe_target(name: str) -> dict[str, Any]:
    if name not in target_names():
        return {"available": False, "reason": f"there is no target {name} in this version", "version": ""}
    here = get_target(name).probe()
    return {"available": here.can_build, "runs": here.can_run, "reason": here.reason, "version": here.version}


def _fingerprint(name: str, settings: CatalogueSettings) -> str:
    """Return what a result depends on: settings, the mechanism's code, versions of what runs it."""
    info = attentions.get(name)
    source = Path(__file__).parent / (info.module.split(":")[0].split(".", 1)[1].replace(".", "/") + ".py")
    packages = ("torch", "nncf", "onnx", "onnxruntime", "openvino", "tensorrt-rtx")
    value = {
        "settings": settings.model_dump(mode="json"),
        "source": hashlib.sha256(source.read_bytes()).hexdigest(),
        "versions": {package: installed_version(package) for package in packages},
        "forms": {t: preferred_forms(t).get(name) for t in settings.targets if t in target_names()},
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _find_row(out: Path, name: str) -> dict[str, Any] | None:
    """Return a row from its own file, or from the table where only that was kept; None if it was not measured."""
    path = out / "rows" / f"{name}.json"
    if not path.is_file():
        rows = _read_table(out).get("rows", [])
        return next((row for row in rows if row["name"] == name), None)
    value = read_json(path)
    if not isinstance(value, dict) or not {"name", "targets", "family"} <= set(value):
        raise ArtifactError(f"{path} is no row of a catalogue; delete it, and it is measured again.")
    return value


def _read_table(out: Path) -> dict[str, Any]:
    path = out / "catalogue.json"
    return load_catalogue(path) if path.is_file() else {}
