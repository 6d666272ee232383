"""The results of a study, and what they say: means over seeds, paired differences, plain sentences.

One file holds them: small enough to be committed, so that a later call goes on from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeattn.artifact import read_json, write_bytes
from edgeattn.errors import ArtifactError
from edgeattn.measure import mean_interval
from edgeattn.measure.statistics import Interval

__all__ = [
    "BARE",
    "MODES",
    "STUDY_FILE",
    "BlockSummary",
    "CellResult",
    "Estimate",
    "Mode",
    "StudyResults",
    "load_results",
    "save_results",
    "summarize_study",
]

BARE = "none"
STUDY_FILE = "study.json"
Mode = Literal["fp32", "ptq_u8", "ptq_s8", "qat_u8", "qat_s8"]
MODES: tuple[Mode, ...] = ("fp32", "ptq_u8", "ptq_s8", "qat_u8", "qat_s8")

_VERSION = 1
_STRICT = ConfigDict(extra="forbid", frozen=True)
_Share = Annotated[float, Field(ge=0, le=1)]


class CellResult(BaseModel):
    """One network trained once: data set, network, attention and seed, and its accuracies."""

    model_config = _STRICT

    data: Annotated[str, Field(min_length=1, max_length=60)]
    network: Annotated[str, Field(min_length=1, max_length=60)]
    attention: Annotated[str, Field(min_length=1, max_length=60)]
    seed: Annotated[int, Field(ge=0)]
    fingerprint: Annotated[
        str, Field(pattern="^[0-9a-f]{16}$", description="Of everything that the recipe says.")
    ]
    data_sha256: Annotated[
        str, Field(pattern="^[0-9a-f]{16}$", description="Beginning of the SHA-256 over both splits.")
    ]
    train_images: Annotated[int, Field(ge=1)]
    test_images: Annotated[int, Field(ge=1)]
    epochs: Annotated[int, Field(ge=0, description="Of the float training.")]
    qat_epochs: Annotated[int, Field(ge=0)]
    ptq_tuning_steps: Annotated[
        int, Field(ge=0, description="From which PTQ tunes biases and ranges; 0: it does not.")
    ] = 0
    top1: Annotated[dict[Mode, _Share], Field(description="Of all test images.")]
    seconds: Annotated[float, Field(ge=0, description="On one core.")]
    machine: Annotated[str, Field(max_length=200)] = ""
    version: Annotated[str, Field(max_length=40, description="Of edgeattn.")] = ""

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What names the cell."""
        return self.data, self.network, self.attention, self.seed


class StudyResults(BaseModel):
    """All finished cells of a study."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Annotated[int, Field(ge=1)] = _VERSION
    cells: list[CellResult] = Field(default_factory=list)

    def find(self, key: tuple[str, str, str, int]) -> CellResult | None:
        """Return a finished cell."""
        return next((cell for cell in self.cells if cell.key == key), None)

    def put(self, cell: CellResult) -> None:
        """Add a cell, in place of one of the same name."""
        self.cells = sorted([*(c for c in self.cells if c.key != cell.key), cell], key=lambda c: c.key)


def load_results(folder: Path) -> StudyResults:
    """Read a study's results; none where there is no file yet.

    Raises:
        ArtifactError: If the file is no study's, or of a newer version, or names a cell twice.
    """
    path = folder / STUDY_FILE
    if not path.exists():
        return StudyResults()
    value = read_json(path)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > _VERSION:
        raise ArtifactError(
            f"{path} has schema_version {version}; this edgeattn reads up to {_VERSION}. Upgrade edgeattn."
        )
    try:
        results = StudyResults.model_validate(value)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the top level"
        raise ArtifactError(
            f"{path} does not hold results of a study: {where}: {first['msg']}. Restore it, or choose another --out."
        ) from exc
    if len({cell.key for cell in results.cells}) != len(results.cells):
        raise ArtifactError(f"{path} holds the same cell twice. Remove one.")
    return results


def save_results(results: StudyResults, folder: Path) -> Path:
    """Write a study's results, whole or not at all; one line for each cell, so that changes can be read."""
    cells = ",\n".join("  " + cell.model_dump_json() for cell in results.cells)
    body = f"[\n{cells}\n ]" if cells else "[]"
    text = f'{{\n "schema_version": {results.schema_version},\n "cells": {body}\n}}\n'
    return write_bytes(folder / STUDY_FILE, text.encode())


# --------------------------------------------------------------------------------- what they say


_LEAST_SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: Of a share in [0, 1], or of a difference of shares.
        interval: 95 %, Student's; None for a single seed.
        seeds: How many.
    """

    mean: float
    interval: Interval | None
    seeds: int

    @property
    def tells(self) -> bool:
        """Whether there are seeds enough for a verdict.

        Accuracies are whole images, so two seeds are often the same number of them apart, and their interval empty.
        """
        return self.seeds >= _LEAST_SEEDS

    @property
    def sign(self) -> int:
        """1 or -1 if the whole interval lies above or below 0, else 0."""
        if self.interval is None:
            return 0
        low, high = self.interval
        return 1 if low > 0 else -1 if high < 0 else 0


@dataclasses.dataclass(frozen=True)
class BlockSummary:
    """One network on one data set.

    Attributes:
        data: Name of the data set.
        network: Name of the network.
        cells: Its finished cells.
        top1: By attention and mode.
        versus_none: Attention less none, paired by seed, by attention and mode.
        versus_fp32: INT8 less FP32 of the same network, by attention and mode.
    """

    data: str
    network: str
    cells: tuple[CellResult, ...]
    top1: dict[str, dict[Mode, Estimate]]
    versus_none: dict[str, dict[Mode, Estimate]]
    versus_fp32: dict[str, dict[Mode, Estimate]]

    @property
    def attentions(self) -> tuple[str, ...]:
        """Names, in the order of the table."""
        return tuple(self.top1)

    @property
    def seeds(self) -> tuple[int, int]:
        """Fewest and most seeds of an attention."""
        counts = [next(iter(modes.values())).seeds for modes in self.top1.values()]
        return min(counts), max(counts)

    def verdicts(self, mode: Mode) -> dict[str, list[str]]:
        """Return which attentions are ``better`` or ``worse`` than none beyond the interval, or ``equal`` within it.

        ``unknown`` are those with fewer than three seeds in common with none.
        """
        found: dict[str, list[str]] = {"better": [], "equal": [], "worse": [], "unknown": []}
        for name, modes in self.versus_none.items():
            estimate = modes[mode]
            where = {1: "better", 0: "equal", -1: "worse"}[estimate.sign]
            found[where if estimate.tells else "unknown"].append(name)
        return found


def summarize_study(cells: Iterable[CellResult], attentions: Sequence[str] = ()) -> list[BlockSummary]:
    """Return what finished cells say, network by network.

    Args:
        cells: Any.
        attentions: Their order; others follow.
    """
    blocks: dict[tuple[str, str], list[CellResult]] = {}
    for cell in cells:
        blocks.setdefault((cell.data, cell.network), []).append(cell)
    return [_summarize(data, network, found, attentions) for (data, network), found in sorted(blocks.items())]


def _summarize(
    data: str, network: str, cells: Sequence[CellResult], attentions: Sequence[str]
) -> BlockSummary:
    present = {cell.attention for cell in cells}
    names = [name for name in dict.fromkeys((BARE, *attentions, *sorted(present))) if name in present]
    by_name = {name: {cell.seed: cell for cell in cells if cell.attention == name} for name in names}

    def estimates(name: str, value: Callable[[CellResult, Mode], float | None]) -> dict[Mode, Estimate]:
        found = {mode: [value(cell, mode) for _, cell in sorted(by_name[name].items())] for mode in MODES}
        known = {mode: [v for v in values if v is not None] for mode, values in found.items()}
        return {
            mode: Estimate(sum(values) / len(values), mean_interval(values), len(values))
            for mode, values in known.items()
            if values
        }

    def above_none(cell: CellResult, mode: Mode) -> float | None:
        bare = by_name.get(BARE, {}).get(cell.seed)
        return None if bare is None else cell.top1[mode] - bare.top1[mode]

    against = {name: estimates(name, above_none) for name in names if name != BARE}
    return BlockSummary(
        data=data,
        network=network,
        cells=tuple(cells),
        top1={name: estimates(name, lambda cell, mode: cell.top1[mode]) for name in names},
        versus_none={name: modes for name, modes in against.items() if modes},
        versus_fp32={
            name: {
                mode: estimate
                for mode, estimate in estimates(
                    name, lambda cell, mode: cell.top1[mode] - cell.top1["fp32"]
                ).items()
                if mode != "fp32"
            }
            for name in names
        },
    )
