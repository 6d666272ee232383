"""Tables of README.md, from cells that may hold anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgeattn.cli_errors import plain_text

__all__ = ["cell", "markdown"]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> str:
    """Return a table, the first `left` columns to the left and numbers to the right."""
    rule = ("---" if index < left else "---:" for index in range(len(header)))
    lines = [header, tuple(rule), *(tuple(cell(text) for text in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Return text that stays in its cell."""
    return plain_text(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
