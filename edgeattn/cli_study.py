"""`edgeattn study`: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeattn.cli_errors import handle_errors
from edgeattn.cli_options import JsonOption, examples, split_names

if TYPE_CHECKING:
    from edgeattn.pipeline_study import StudyOutcome
    from edgeattn.report_study import Estimate

__all__ = ["STUDY_EXAMPLES", "print_study", "study"]

STUDY_EXAMPLES = examples(
    "edgeattn study --budget 4h --workers 2",
    "edgeattn study --only sign-digits,coord     # coord and none in every network on sign-digits",
    "edgeattn study --budget 0s                  # only write table, plots and page again",
    "edgeattn study recipes/study/plan.yaml --out runs/study    # everything, from the start",
)


@handle_errors
def study(
    plan: Annotated[
        Path,
        typer.Argument(metavar="PLAN", help="The YAML file that says which networks, data and schedules."),
    ] = Path("recipes/study/plan.yaml"),
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the results; what is there is kept.")
    ] = Path("recipes/study"),
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Time for this call, such as 4h or 90m; default: until all is done."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="Only these data sets, networks, attentions. Repeatable, or a,b."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Networks trained side by side, each on one core.")
    ] = 1,
    keep_runs: Annotated[
        bool, typer.Option("--keep-runs", help="Keep the folders of finished networks.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Drop results of another schedule, and compute them again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what attention and INT8 do to accuracy, over networks, data sets and seeds.

    Each network that is finished is saved and on the page DIR/study.md; a call that was stopped, or whose time
    was up, goes on with the next one. With a budget, large data sets are used in part; the page says how much.
    """
    from edgeattn.cli_output import print_json
    from edgeattn.pipeline_study import parse_budget, run_study
    from edgeattn.progress import make_progress
    from edgeattn.report_study_page import study_json, write_study_page

    seconds = None if budget is None else parse_budget(budget)
    with make_progress() as progress:
        outcome = run_study(
            plan,
            out,
            budget=seconds,
            only=split_names(only),
            workers=workers,
            keep_runs=keep_runs,
            again=again,
            progress=progress,
            after_cell=lambda asked, results: write_study_page(
                results, out, title=asked.title, attentions=asked.attentions
            ),
        )
    page = write_study_page(
        outcome.results, out, title=outcome.plan.title, attentions=outcome.plan.attentions
    )
    if as_json:
        summary = study_json(outcome.results, outcome.plan.attentions)
        print_json({**summary, "new": outcome.new, "left": outcome.left, "failed": outcome.failed})
    else:
        print_study(outcome, page)
    if outcome.failed:
        raise typer.Exit(1)


def print_study(outcome: StudyOutcome, page: Path) -> None:
    """Print a line for each network, and what is left."""
    from edgeattn.cli_output import open_console, print_line, print_table
    from edgeattn.report_study import MODES, summarize_study
    from edgeattn.report_study_page import MODE_TITLES, conclusions

    console = open_console()
    rows = [
        (
            block.data,
            block.network,
            name,
            str(next(iter(modes.values())).seeds),
            *(_percent(modes[mode]) for mode in MODES),
        )
        for block in summarize_study(outcome.results.cells, outcome.plan.attentions)
        for name, modes in block.top1.items()
    ]
    header = ("data", "network", "attention", "seeds", *(MODE_TITLES[mode] for mode in MODES))
    print_table(console, header, rows, left=3)
    for block in summarize_study(outcome.results.cells, outcome.plan.attentions):
        for sentence in conclusions(block):
            print_line(console, f"{block.data}, {block.network}: {sentence}")
    for name, message in outcome.failed.items():
        print_line(console, f"failed: {name}: {message}")
    print_line(console, f"{outcome.new} new; {_left(outcome)}")
    print_line(console, f"page: {page}")


def _left(outcome: StudyOutcome) -> str:
    if not outcome.left:
        return "nothing is left"
    cells = ", ".join(f"{count} of {name}" for name, count in outcome.left.items())
    return f"left: {cells}; about {outcome.seconds_left / 3600:.1f} hours on one core"


def _percent(estimate: Estimate) -> str:
    if estimate.interval is None:
        return f"{100 * estimate.mean:.1f}"
    half = (estimate.interval[1] - estimate.interval[0]) / 2
    return f"{100 * estimate.mean:.1f} ± {100 * half:.1f}"
