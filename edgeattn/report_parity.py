"""README's table of engines beside each other, from what `edgeattn parity --json` printed of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeattn.artifact import read_json, write_json
from edgeattn.errors import ArtifactError
from edgeattn.report import load_report

__all__ = ["PARITY_HEADER", "keep_parity", "parity_rows"]

PARITY_HEADER = (
    "recipe",
    "profile",
    "targets",
    "images",
    "least agreement of two",
    "least SQNR of two",
    "top-1 lies within",
    "values of a layer off by more than a step, at most",
)
_NOTHING = "-"


def keep_parity(run: Path, printed: Path, folder: Path) -> Path:
    """Save a comparison without its bulk, in place of an earlier one of the same targets in the same profiles.

    Args:
        run: Folder of the run whose engines were compared.
        printed: What ``edgeattn parity RUN ... --json`` printed.
        folder: Where to; there is a file for each recipe and choice of grids.

    Returns:
        The file written.

    Raises:
        ArtifactError: If `printed` is no such file.
    """
    report = load_report(run)
    value: Any = read_json(printed)
    try:
        entry = {
            "n": int(value["n"]),
            "seen": int(value["data"]["seen"]),
            "targets": {name: _target(target) for name, target in value["targets"].items()},
            "between": {
                pair: {key: both[key] for key in ("agreement", "sqnr_db", "identical", "same_profile")}
                for pair, both in value["between"].items()
            },
            "top1_spread": dict(value["top1_spread"]),
            "passed": bool(value["verdict"]["passed"]),
            "cpu": value["environment"]["cpu"],
        }
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise ArtifactError(
            f"{printed} is not what `edgeattn parity RUN --json` prints: {exc!r}. Run it again."
        ) from exc
    exact = report.has_exact_grids
    name = f"{report.name}{'.exact' if exact else ''}"
    path = folder / f"{name}.json"
    kept = _entries(path) if path.is_file() else []
    kept = [other for other in kept if not _replaces(entry, other)]
    comparisons = sorted([*kept, entry], key=lambda item: (-item["n"], sorted(item["targets"])))
    return write_json(path, {"recipe": report.name, "exact": exact, "comparisons": comparisons})


def parity_rows(folder: Path) -> list[tuple[str, ...]]:
    """Return the table's rows, a recipe's comparisons one below the other, each profile in its own row.

    Raises:
        ArtifactError: If a file there is not one of `keep_parity`.
    """
    rows: list[tuple[str, ...]] = []
    for path in sorted(folder.glob("*.json")):
        for entry in _entries(path):
            try:
                profiles = sorted({profile for _, profile in _compared(entry)}, reverse=True)
                name = path.stem.removesuffix(".exact")
                rows.extend((name, profile, *_row(entry, profile)) for profile in profiles)
            except (KeyError, TypeError, ValueError) as exc:
                raise ArtifactError(f"{path} holds a comparison that is not whole: {exc!r}.") from exc
    return rows


def _entries(path: Path) -> list[dict[str, Any]]:
    value = read_json(path)
    entries = value.get("comparisons") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise ArtifactError(f"{path} holds no comparisons. Delete it and save them again.")
    return entries


def _target(target: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        key: target[key] for key in ("status", "profile", "version", "top1", "agreement") if key in target
    }
    layers = target.get("layers")
    if layers:
        shares = [float(layer["over_one_share"]) for layer in layers["layers"]]
        kept |= {
            "layer_images": layers["images"],
            "different_share": layers["different_share"],
            "over_one_share": max(shares, default=0.0),
        }
    return kept


def _replaces(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether `entry` compares the same targets as `other`, in its profiles at least."""
    new, old = _compared(entry), _compared(other)
    return old <= new and {name for name, _ in old} == {name for name, _ in new}


def _compared(entry: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Return the targets of a comparison with their profiles; where one runs in both, its name has its profile."""
    return {(name.partition(":")[0], str(target["profile"])) for name, target in entry["targets"].items()}


def _row(entry: Mapping[str, Any], profile: str) -> Sequence[str]:
    targets = {name: target for name, target in entry["targets"].items() if target["profile"] == profile}
    pairs = [
        both
        for names, both in entry["between"].items()
        if both["same_profile"] and names.partition("/")[0] in targets
    ]
    sqnr = [float(both["sqnr_db"]) for both in pairs if not both["identical"]]
    shares = [target["over_one_share"] for target in targets.values() if "over_one_share" in target]
    shown = [
        name.partition(":")[0] + ("" if target["status"] == "ok" else f" ({target['status']})")
        for name, target in targets.items()
    ]
    images = f"{entry['n']:,}" + (f" ({entry['seen']} of them learned from)" if entry["seen"] else "")
    spread = entry["top1_spread"].get(profile)
    return (
        ", ".join(shown),
        images,
        f"{100 * min(both['agreement'] for both in pairs):.2f} %" if pairs else _NOTHING,
        f"{min(sqnr):.1f} dB" if sqnr else ("identical" if pairs else _NOTHING),
        _NOTHING if spread is None else f"{100 * spread:.2f} points",
        f"{max(shares):.3%}" if shares else _NOTHING,
    )
