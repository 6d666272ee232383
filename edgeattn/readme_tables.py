"""Tables of README.md, from cells that may hold anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgeattn.cli_errors import plain_text

__all__ = ["cell", "markdown", "processor"]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> str:
    """Return a table, the first `left` columns to the left and numbers to the right."""
    rule = ("---" if index < left else "---:" for index in range(len(header)))
    lines = [header, tuple(rule), *(tuple(cell(text) for text in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Return text that stays in its cell."""
    return plain_text(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def processor(cpu: Mapping[str, Any]) -> str:
    """Name a processor and its generation, with the instructions that decide how fast and how exact INT8 is on x86."""
    known = cpu.get("instruction_sets") or []
    names = {"avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI", "avx2": "AVX2 without VNNI"}
    vector = next((name for flag, name in names.items() if flag in known), "")
    vector += " and AMX" if vector and "amx_int8" in known else ""
    cores = cpu.get("usable_cores")
    generation = cpu.get("generation")
    name = f"{cpu.get('model')} ({generation})" if generation else str(cpu.get("model"))
    parts = [cell(name), vector, f"{cores} cores usable" if cores else ""]
    return ", ".join(part for part in parts if part)
