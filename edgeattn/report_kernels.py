"""README's table of what TensorRT for RTX builds, from the file that `tests.benchmarks.tensorrt_kernels` writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["kernel_table"]

_HEADER = (
    "network",
    "attention",
    "form",
    "kernels",
    "a gate adds",
    "reformats",
    "a gate adds",
    "layers with weights in INT8",
    "float32 kernels",
    "UINT8 warnings",
)
_COUNTS = ("kernels", "reformats", "int8_coverage", "float32_kernels")


def kernel_table(value: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Return header, rows, and what has to be said about them.

    Raises:
        KeyError: If the file is not one of that benchmark; or TypeError, or IndexError.
    """
    rows = value["rows"]
    capabilities = [name for name in rows[0]["builds"] if name != value["described"]]
    same = [name for name in capabilities if all(_same_counts(row, name) for row in rows)]
    without = [name for name in capabilities if all(row["builds"][name]["int8_coverage"] < 1 for row in rows)]
    said = (
        f"TensorRT-RTX {value['version']}, {value['size']}x{value['size']}, batch 1, engines for "
        f"{value['described']}, built without a GPU."
    )
    if same:
        said += f" The same file gives the same counts for {', '.join(same)}."
    if without:
        said += f" It builds for {' and '.join(without)} too, where this version has no INT8 convolutions."
    said += (
        " A gate is one attention module; what it adds is the difference to the network without attention. Layers "
        "with weights are those outside gates. Float32 kernels: beyond the last layer's. "
    )
    missed = value["missed"]
    said += f"Missed: {'; '.join(missed)}." if missed else "No bound is missed."
    return _HEADER, [_row(row) for row in rows], said


def _same_counts(row: Mapping[str, Any], capability: str) -> bool:
    return all(row["builds"][capability][key] == row[key] for key in _COUNTS)


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(row["model"]),
        str(row["attention"]),
        str(row["form"] or "-"),
        str(row["kernels"]),
        _per_gate(row["kernels_per_gate"]),
        str(row["reformats"]),
        _per_gate(row["reformats_per_gate"]),
        f"{100 * row['int8_coverage']:.1f} % of {row['layers_with_weights']}",
        str(row["float32_kernels"]),
        str(row["uint8_warnings"]),
    )


def _per_gate(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"
