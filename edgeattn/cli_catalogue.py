"""`edgeattn catalogue`: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeattn.cli_errors import handle_errors
from edgeattn.cli_options import JsonOption, ThreadsOption, examples, split_names

__all__ = ["CATALOGUE_EXAMPLES", "catalogue", "print_catalogue"]

CATALOGUE_EXAMPLES = examples(
    "edgeattn catalogue --html catalogue.html",
    "edgeattn catalogue --only se,eca,coord --target openvino-cpu",
    "edgeattn catalogue --from recipes/catalogue/catalogue.json --html catalogue.html",
    "edgeattn catalogue --json | jq '.rows[] | {name, sqnr_db, tax: .targets[\"ort-cpu\"].tax}'",
    "edgeattn catalogue --train --only se,eca    # also train, quantize and score each on the digits",
)
_NOTHING = "-"


@handle_errors
def catalogue(
    out: Annotated[
        Path, typer.Option(help="Folder of the results; what is there is not measured again.")
    ] = Path("runs/catalogue"),
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAMES", help="Only these mechanisms. Repeatable, or a,b.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="NAMES", help="Only these targets. Repeatable, or a,b.")
    ] = None,
    saved: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Show a saved catalogue.json; nothing is measured."),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as a page.")] = None,
    threads: ThreadsOption = 1,
    again: Annotated[bool, typer.Option("--again", help="Measure what was measured before, too.")] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Also train each that goes into a network on the digits.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Float epochs of each in --train.")] = 4,
    as_json: JsonOption = False,
) -> None:
    """Measure every attention mechanism on every target: cost, accuracy, and what falls back.

    Each result is saved when it is there, so that a second call goes on where the first was stopped.
    """
    from edgeattn.cli_output import print_json
    from edgeattn.pipeline_catalogue import (
        CatalogueSettings,
        choose_targets,
        load_catalogue,
        make_catalogue,
    )
    from edgeattn.progress import make_progress

    names = split_names(only)
    if saved is not None:
        table = load_catalogue(saved, names)
    else:
        chosen: dict[str, Any] = {"threads": threads}
        if target:
            chosen["targets"] = choose_targets(split_names(target))
        with make_progress() as progress:
            table = make_catalogue(
                out, CatalogueSettings(**chosen), only=names, again=again, progress=progress
            )
            if train:
                from edgeattn.pipeline_catalogue_train import train_catalogue

                table = train_catalogue(out, table, only=names, epochs=epochs, progress=progress)
    if html is not None:
        from edgeattn.report_catalogue import write_catalogue_page

        write_catalogue_page(table, html)
    if as_json:
        print_json(table)
        return
    print_catalogue(table)
    if html is not None:
        typer.echo(f"page: {html}")


def print_catalogue(table: Mapping[str, Any]) -> None:
    """Print the table, one line for each mechanism."""
    from edgeattn.cli_output import open_console, print_line, print_table

    console = open_console()
    targets = [
        name
        for name in table["settings"]["targets"]
        if any("int8_ms" in row["targets"].get(name, {}) for row in table["rows"])
    ]
    header = ["name", "family", "parameters", "kMAC", "SQNR u8", "SQNR s8"]
    for name in targets:
        header += [f"{name} ms", "tax"]
    rows = []
    for row in table["rows"]:
        cells = [row["name"], row["family"].replace("_", "+"), f"{row['parameters']:,}"]
        cells.append(f"{row['macs'] / 1e3:.0f}")
        cells += [_decibels(row["sqnr_db"][profile]) for profile in ("u8", "s8")]
        for name in targets:
            result = row["targets"].get(name, {})
            cells.append(f"{result['int8_ms']:.3f}" if "int8_ms" in result else _NOTHING)
            tax = result.get("tax")
            cells.append(_NOTHING if tax is None else f"{100 * tax:+.0f} %")
        rows.append(tuple(cells))
    print_table(console, tuple(header), rows, left=2)
    summary = table["summary"]
    print_line(
        console,
        f"{summary['mechanisms']} mechanisms; {summary['run_int8_on_both_cpus']} of "
        f"{summary['keep_their_shape']} that keep their input's shape run in INT8 on both CPU runtimes",
    )


def _decibels(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1f} dB"
