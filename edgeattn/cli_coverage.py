"""The coverage table of engines whose target can say what it made of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeattn.cli_output import print_line, print_table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_coverage"]


def print_coverage(console: Console, name: str, build: Mapping[str, Any]) -> None:
    """Print kernels by module with their types; nothing for a target that reports no coverage.

    Args:
        console: Where to.
        name: Of the target.
        build: An engine's details.
    """
    coverage = build.get("coverage")
    if not coverage:
        return
    rows = [
        (
            item["module"],
            str(item["kernels"]),
            *(str(item[key] or "") for key in ("int8", "float16", "float32", "reformats")),
            f"{item['bytes_moved'] / 1024:.0f}",
        )
        for item in coverage["modules"]
    ]
    total = [sum(item[key] for item in coverage["modules"]) for key in _COUNTS]
    rows.append(("all", *(str(number or "") for number in total), f"{coverage['bytes_moved'] / 1024:.0f}"))
    where = f" for {build['compute_capability']}" if build.get("compute_capability") else ""
    print_line(console, f"\n{name}: what {build.get('runtime', 'the runtime')} built{where}")
    header = ("module", "kernels", "INT8", "float16", "float32", "reformats", "KiB moved")
    print_table(console, header, rows, left=1)
    share = coverage["int8_coverage"]
    said = "no convolution" if share is None else f"{100 * share:.1f} % of {coverage['convolutions']} layers"
    print_line(console, f"INT8: {said} with weights, gates left out")
    if coverage["not_int8"]:
        print_line(console, f"not INT8{_named(coverage['not_int8'])}")
    print_line(
        console,
        f"float32: {coverage['float32_kernels']} kernels beyond the last layer"
        f"{_named(coverage['float32_kernel_names'])}",
    )
    if coverage["gates"]:
        print_line(
            console,
            f"gates: {coverage['gates']}, each adds {coverage['kernels_per_gate']:.1f} kernels, "
            f"{coverage['reformats_per_gate']:.1f} of them reformats",
        )
    if coverage.get("float32_nodes"):
        print_line(
            console, f"kept in float32 for the size of their values{_named(coverage['float32_nodes'])}"
        )


_COUNTS = ("kernels", "int8", "float16", "float32", "reformats")


def _named(names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f": {', '.join(names[:4])}{more}"
