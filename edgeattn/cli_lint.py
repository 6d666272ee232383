"""`edgeattn lint`: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeattn.cli_errors import handle_errors
from edgeattn.cli_options import JsonOption, examples
from edgeattn.cli_output import open_console, print_json, print_line, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from edgeattn.lint import DlaPlan, Finding
    from edgeattn.onnx_graph import Graph

__all__ = ["LINT_EXAMPLES", "lint"]

LINT_EXAMPLES = examples(
    "edgeattn lint model.onnx --target tensorrt",
    "edgeattn lint model.onnx --target ort --fix fixed.onnx",
    "edgeattn lint model.onnx --target dla --plan",
    "edgeattn lint model.onnx --target openvino --json | jq '.findings[].rule'",
)

_SHOWN = 6
_FOUND = 1


@handle_errors
def lint(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")],
    target: Annotated[
        str, typer.Option(metavar="NAME", help="Where it is to run: tensorrt, dla, openvino or ort.")
    ],
    fix: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Also write the model with every fix applied that keeps its numbers; which ones round is said.",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="With --target dla: the loadables and GPU parts it is cut into.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what in a model will be slow, fall back or go wrong on a target.

    Each finding names its rule, why it matters, and the node and tensor where it was seen. The exit code is
    1 if an error was found: something that does not build, or gives wrong numbers; warnings leave it 0.
    """
    from edgeattn.errors import RecipeError
    from edgeattn.lint import fix_graph, lint_graph, plan_dla

    if plan and target != "dla":
        raise RecipeError(f"--plan cuts a network for DLA; --target is {target!r}. Use --target dla.")
    graph = _read(model)
    findings = lint_graph(graph, target)
    plans = {}
    if plan:
        plans = {"as it is": plan_dla(graph), "with --fix": plan_dla(graph, respelled=True)}
    fixed: Sequence[str] = ()
    left: list[Finding] = []
    if fix is not None:
        from edgeattn.artifact import write_bytes

        fixed = fix_graph(graph, target)
        left = lint_graph(graph, target)
        write_bytes(fix, graph.to_model().SerializeToString(deterministic=True))
    if as_json:
        result = {
            "model": model.name,
            "target": target,
            "findings": [finding.to_json() for finding in findings],
            "fixed": list(fixed),
            "left": [finding.to_json() for finding in left],
            "plans": {name: item.to_json() for name, item in plans.items()},
        }
        print_json(result)
    else:
        _print(open_console(), model.name, target, findings, plans)
        if fix is not None:
            _print_fixed(open_console(), fix, fixed, left)
    if any(finding.severity == "error" for finding in (left if fix is not None else findings)):
        raise typer.Exit(_FOUND)


def _read(path: Path) -> Graph:
    from edgeattn.errors import ModelError
    from edgeattn.extras import require

    onnx = require("onnx", purpose="reading models")
    from edgeattn.onnx_graph import Graph

    try:
        return Graph(onnx.load(str(path)))
    except OSError as exc:
        raise ModelError(f"Cannot read {path}: {exc.strerror or exc}.") from exc
    except Exception as exc:
        # Protobuf's own error type depends on its backend.
        raise ModelError(f"{path} is not an ONNX model: {' '.join(str(exc).split())[:200]}.") from exc


def _print(
    console: Console,
    name: str,
    target: str,
    findings: Sequence[Finding],
    plans: Mapping[str, DlaPlan],
) -> None:
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    for rule, items in by_rule.items():
        first = items[0]
        style = "red" if first.severity == "error" else "yellow"
        print_line(
            console, f"\n{rule} {first.severity}: {first.title} ({len(items)}{_repairs(items)})", style
        )
        print_line(console, f"  {first.why}")
        for item in items[:_SHOWN]:
            print_line(console, f"  {item.node}: {item.value}")
        if len(items) > _SHOWN:
            print_line(console, f"  and {len(items) - _SHOWN} more (--json lists all)")
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = len(findings) - errors
    summary = f"{errors} error{_plural(errors)}, {warnings} warning{_plural(warnings)}"
    summary = summary if findings else "nothing found"
    print_line(console, f"\n{name} on {target}: {summary}")
    for how, plan in plans.items():
        _print_plan(console, how, plan)


def _print_plan(console: Console, how: str, plan: DlaPlan) -> None:
    from edgeattn.lint.dla_support import MAX_LOADABLES

    verdict = "fits" if plan.fits else "does not fit"
    print_line(
        console,
        f"\n{how}: {plan.on_dla} of {plan.operations} operations on DLA, {plan.loadables} "
        f"loadable{_plural(plan.loadables)} of {MAX_LOADABLES} ({verdict}), "
        f"{plan.gpu_parts} GPU part{_plural(plan.gpu_parts)}",
    )
    rows = []
    for index, part in enumerate(plan.parts):
        why = "; ".join(f"{count} x {reason}" for reason, count in part.reasons.items())
        span = part.nodes[0] if len(part.nodes) == 1 else f"{part.nodes[0]} ... {part.nodes[-1]}"
        rows.append((str(index), part.device.upper(), str(len(part.nodes)), span, why))
    print_table(console, ("part", "device", "operations", "from ... to", "why not DLA"), rows[:40], left=5)


def _repairs(items: Sequence[Finding]) -> str:
    """Return what --fix does about one rule's findings, or an empty string."""
    fixable = sum(item.fixable for item in items)
    if not fixable:
        return ""
    rounds = f", rounding {items[0].rounds}" if items[0].rounds else ""
    return f", --fix repairs {'it' if fixable == len(items) else f'{fixable} of them'}{rounds}"


def _plural(number: int) -> str:
    return "" if number == 1 else "s"


def _print_fixed(console: Console, path: Path, fixed: Sequence[str], left: Sequence[Finding]) -> None:
    what = ", ".join(fixed) if fixed else "nothing: no rule that it breaks has an exact fix"
    print_line(console, f"fixed {what}; {len(left)} finding{_plural(len(left))} left")
    print_line(console, str(path))
