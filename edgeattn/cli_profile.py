"""`edgeattn profile`: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeattn.cli_errors import handle_errors
from edgeattn.cli_options import JsonOption, ThreadsOption, examples
from edgeattn.cli_output import open_console, print_json, print_line, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from edgeattn.measure.peaks import Peaks
    from edgeattn.measure.profile import GroupTime, ProfiledLayer
    from edgeattn.pipeline_profile import EngineProfile

__all__ = ["PROFILE_EXAMPLES", "print_profile", "profile"]

PROFILE_EXAMPLES = examples(
    "edgeattn profile runs/quickstart/ort-cpu/int8/model.u8.ort-cpu.int8.onnx",
    "edgeattn profile runs/quickstart/openvino-cpu/int8/model.u8.openvino-cpu.int8.xml --threads 2",
    "edgeattn profile ENGINE --json | jq '.categories[] | {name, share}'",
    "edgeattn profile ENGINE --layers 0 --picture time.svg",
)

_NOTHING = "-"
# A sum of layers that is longer than the whole by more than this is worth a word.
_NOTABLE_COST = 1.1
_DTYPES = {"int8": "INT8", "uint8": "INT8"}


@handle_errors
def profile(
    engine: Annotated[
        Path, typer.Argument(metavar="ENGINE", help="An engine that a target built, its manifest beside it.")
    ],
    threads: ThreadsOption = 1,
    runs: Annotated[int, typer.Option(min=1, max=100_000, help="Inferences to profile.")] = 50,
    layers: Annotated[
        int, typer.Option(min=0, metavar="N", help="Show the N slowest layers; 0 shows all, in order.")
    ] = 20,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the blocks' times: .svg, .png or .pdf.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where an engine's time goes.

    By layer, by module and by kind of work, each against the roofline of this machine: what its measured
    INT8 rate and memory bandwidth would allow.
    """
    from edgeattn.pipeline_profile import profile_engine
    from edgeattn.progress import make_progress

    if picture is not None:
        from edgeattn.report_profile import check_picture, save_picture

        check_picture(picture)
    with make_progress() as progress:
        result = profile_engine(engine, threads=threads, runs=runs, progress=progress)
        if picture is not None:
            progress.note(str(save_picture(result.profile, f"{result.engine}, {result.target}", picture)))
    if as_json:
        print_json(result.to_json())
    else:
        print_profile(result, layers)


def print_profile(result: EngineProfile, rows: int) -> None:
    """Print the slowest layers, then the time by module and by kind of work, then what it is compared with.

    Args:
        result: From `edgeattn.pipeline_profile.profile_engine`.
        rows: Layers to show, slowest first; 0 for all, in order of execution.
    """
    console = open_console()
    print_line(
        console,
        f"\n{result.engine}: {result.target}, {result.runtime}, {_count(result.threads, 'thread')}, "
        f"{_count(result.runs, 'profiled inference')}",
    )
    layers = result.profile.layers
    shown = sorted(layers, key=lambda layer: -layer.latency_us)[:rows] if rows else layers
    if len(shown) < len(layers):
        print_line(console, f"\nthe {len(shown)} slowest of {len(layers)} layers (--layers 0 shows all)")
    else:
        print_line(console, f"\nall {_count(len(layers), 'layer')}, in order of execution")
    header = ("layer", "kind", "type", "module", "us", "share", "MMAC", "KiB", "roofline")
    print_table(console, header, [_layer_row(layer) for layer in shown], left=4)
    print_line(
        console, f"by module: blocks, and the {_count(len(result.attentions), 'attention module')} in them"
    )
    _print_groups(console, "module", result.profile.modules, result.profile.total)
    print_line(console, "by kind of work; all that an attention module does counts as attention")
    _print_groups(console, "work", result.profile.categories, result.profile.total)
    _print_remarks(console, result)


def _print_remarks(console: Console, result: EngineProfile) -> None:
    total, whole = result.profile.total.latency_us / 1e3, result.p50_ms
    print_line(
        console,
        f"layers together {total:.3f} ms; a whole inference without the profiler {whole:.3f} ms (p50)",
    )
    if total > _NOTABLE_COST * whole:
        print_line(
            console, "  the profiler itself takes time at every layer, so that short layers look longer here"
        )
    if result.profile.peaks is None:
        print_line(console, f"no roofline: {result.no_roofline}")
        return
    print_line(console, f"peaks measured just now: {_peaks(result.profile.peaks)}")
    attainable = result.profile.total.attainable_us
    if attainable is not None:
        print_line(
            console,
            f"at these peaks the network takes {attainable / 1e3:.3f} ms: the whole inference reaches "
            f"{_percent(result.roofline)} of the roofline",
        )
    print_line(
        console,
        "  roofline = attainable / measured; over 100 % where data come from a cache, not from memory",
    )


def _peaks(peaks: Peaks) -> str:
    names = {"int8": "INT8", "float": "float"}
    rates = [f"{names.get(key, key)} {rate / 1e9:.0f} GMAC/s" for key, rate in peaks.macs_per_second.items()]
    rates.append(f"memory {peaks.bytes_per_second / 1e9:.1f} GB/s")
    return f"{', '.join(rates)}, with {_count(peaks.threads, 'thread')}"


def _layer_row(layer: ProfiledLayer) -> tuple[str, ...]:
    dtype = _DTYPES.get(layer.dtype, layer.dtype) or _NOTHING
    module = layer.module or layer.group
    return (layer.name, layer.kind or _NOTHING, dtype, module, *_figures(layer))


def _print_groups(console: Console, title: str, groups: Sequence[GroupTime], total: GroupTime) -> None:
    header = (title, "layers", "us", "share", "MMAC", "KiB", "roofline")
    rows = [(group.name, str(group.layers), *_figures(group)) for group in (*groups, total)]
    print_table(console, header, rows, left=1)


def _figures(item: ProfiledLayer | GroupTime) -> tuple[str, ...]:
    macs = f"{item.macs / 1e6:.2f}" if item.macs else _NOTHING
    size = f"{item.bytes / 1024:.0f}" if item.bytes else _NOTHING
    return (f"{item.latency_us:.1f}", _percent(item.share), macs, size, _percent(item.roofline))


def _percent(share: float | None) -> str:
    return _NOTHING if share is None else f"{100 * share:.1f} %"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
