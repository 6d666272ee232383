"""The command line. Each command imports what it needs when it runs, so that --help is instant."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Literal

import typer

from edgeattn.cli_catalogue import CATALOGUE_EXAMPLES, catalogue
from edgeattn.cli_errors import handle_errors, set_debug
from edgeattn.cli_kit import KIT_EXAMPLES, kit
from edgeattn.cli_lint import LINT_EXAMPLES, lint
from edgeattn.cli_options import (
    BgrOption,
    FitOption,
    InputShapeOption,
    JsonOption,
    NormalizationOption,
    QuickOption,
    RecipeArgument,
    SetOption,
    StrictOption,
    ThreadsOption,
    examples,
    load_request,
    parse_shape,
    split_names,
)
from edgeattn.cli_parity import PARITY_EXAMPLES, parity
from edgeattn.cli_profile import PROFILE_EXAMPLES, profile
from edgeattn.cli_setup import SETUP_EXAMPLES, setup
from edgeattn.cli_study import STUDY_EXAMPLES, study
from edgeattn.cli_tune import TUNE_EXAMPLES, tune

__all__ = ["app", "main"]

app = typer.Typer(
    name="edgeattn",
    help="Mobile attention in INT8: build, quantize, and prove that every edge runtime agrees.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: drawing it with rich would double the time it takes.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Exit codes: 0 done; 1 failed; 2 the request is not valid; 3 a package or device is absent; "
        "4 a bound of the recipe was missed; 130 interrupted.\n\n"
        "\b\nStart with:\n  edgeattn run recipes/quickstart.yaml --out runs/quickstart"
    ),
)


@app.callback()
def _global_options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="EDGEATTN_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    set_debug(debug)


@app.command(
    epilog=examples(
        "edgeattn run recipes/quickstart.yaml --out runs/quickstart",
        "edgeattn run recipes/quickstart.yaml --set train.epochs=2 --set 'attention={kind: eca}'",
        "edgeattn run recipes/quickstart.yaml --json | jq .targets",
        "edgeattn run recipes/quickstart.yaml --set 'targets=[tensorrt-rtx]' --strict",
    )
)
@handle_errors
def run(
    recipe: RecipeArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Results; default runs/<name of the recipe>."),
    ] = None,
    overrides: SetOption = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train, quantize, build, measure, report.

    Running it again with the same --out resumes: finished steps are not repeated. A bound under accept
    that is missed ends with exit code 4, and so does a build that --strict fails; the bound of --strict is
    accept.int8_coverage_min.
    """
    request = load_request(recipe, overrides)

    import os

    from edgeattn.cli_output import print_json, print_report
    from edgeattn.pipeline import run_recipe
    from edgeattn.progress import make_progress

    # Before torch loads: threads that spin while they wait make a busy machine many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    folder = out if out is not None else Path("runs") / request.name
    with make_progress() as progress:
        report = run_recipe(request, folder, strict=strict, progress=progress)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print_report(report, folder / "report.json", folder / "report.html")
    if report.verdict == "fail":
        raise typer.Exit(4)


@app.command(epilog=examples("edgeattn plan recipes/quickstart.yaml --set train=null"))
@handle_errors
def plan(recipe: RecipeArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Show the steps of a recipe without running them."""
    request = load_request(recipe, overrides)

    from edgeattn.cli_output import print_json, print_steps
    from edgeattn.pipeline import plan_steps

    steps = plan_steps(request)
    if as_json:
        print_json({"recipe": request.name, "fingerprint": request.fingerprint(), "steps": list(steps)})
    else:
        print_steps(steps)


@app.command(epilog=examples("edgeattn attentions", "edgeattn attentions --json"))
@handle_errors
def attentions(as_json: JsonOption = False) -> None:
    """List attention mechanisms and their forms."""
    from edgeattn.attention import attentions as registry
    from edgeattn.cli_output import print_attentions, print_json

    entries = [registry.get(name) for name in registry]
    if as_json:
        print_json(entries)
    else:
        print_attentions(entries)


@app.command(epilog=examples("edgeattn targets", "edgeattn targets --json"))
@handle_errors
def targets(as_json: JsonOption = False) -> None:
    """List the targets and what works here.

    For a target that does not work, also why, and what would help.
    """
    from edgeattn.cli_output import print_json, print_targets
    from edgeattn.targets import list_targets

    statuses = list_targets()
    if as_json:
        print_json([status.to_json() for status in statuses])
    else:
        print_targets(statuses)


@app.command(
    epilog=examples(
        "edgeattn quantize model.onnx --calibration photos/ --out out --target ort-cpu --target openvino-cpu",
        "edgeattn quantize model.onnx --calibration samples.npy --out out --tuning-steps 0",
        "edgeattn quantize detector.onnx --input-shape 1,3,320,320 --calibration photos/ --out out",
        "edgeattn quantize detector.onnx --calibration photos/ --normalization unit --fit letterbox --out out",
        "edgeattn quantize model.onnx --calibration photos/ --out out --target tensorrt-rtx --strict",
    )
)
@handle_errors
def quantize(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A float32 ONNX network that takes one image.")
    ],
    calibration: Annotated[
        str,
        typer.Option(
            metavar="C",
            help="A manifest, a folder of images, or an .npy file of NCHW inputs.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where engines and report go.")],
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A target; repeatable. Default: all that build here."),
    ] = None,
    range_estimator: Annotated[
        Literal["auto", "mean_minmax", "minmax", "percentile", "mse"],
        typer.Option(help="How ranges follow from the samples; auto tries the others and keeps the best."),
    ] = "auto",
    tuning_steps: Annotated[
        int,
        typer.Option(min=0, max=10_000, help="Batches that biases and ranges are tuned with; 0 is quick."),
    ] = 120,
    int8_coverage_min: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of the layers with weights that must run in INT8; else exit code 4."
        ),
    ] = None,
    normalization: NormalizationOption = None,
    fit: FitOption = None,
    bgr: BgrOption = None,
    limit: Annotated[
        int | None,
        typer.Option(min=16, max=2048, help="Use at most so many images, spread evenly over the folder."),
    ] = None,
    input_shape: InputShapeOption = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Quantize your own ONNX model.

    A float32 network goes in; INT8 engines and a report come out. Agreement is measured of classifiers, SQNR of
    everything: detectors, segmentation, several outputs.
    """
    from edgeattn.cli_output import print_json, print_report
    from edgeattn.data.model_input import ImageOptions
    from edgeattn.pipeline import quantize_onnx
    from edgeattn.progress import make_progress
    from edgeattn.quant.config import PtqConfig
    from edgeattn.recipe import Accept

    with make_progress() as progress:
        report = quantize_onnx(
            model,
            calibration,
            out,
            targets=split_names(target),
            config=PtqConfig(range_estimator=range_estimator, tuning_steps=tuning_steps),
            accept=Accept(int8_coverage_min=int8_coverage_min),
            strict=strict,
            progress=progress,
            input_shape=parse_shape(input_shape),
            image_options=ImageOptions(normalization, fit, bgr),
            limit=limit,
        )
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print_report(report, out / "report.json", out / "report.html")
    if report.verdict == "fail":
        raise typer.Exit(4)


@app.command(
    epilog=examples(
        "edgeattn bench runs/quickstart/ort-cpu/{int8,fp32}/*.onnx --target ort-cpu",
    )
)
@handle_errors
def bench(
    engines: Annotated[
        list[Path], typer.Argument(metavar="ENGINE...", help="Engines that the target built.")
    ],
    target: Annotated[
        str, typer.Option("--target", "-t", metavar="T", help="The target they were built by.")
    ],
    versus: Annotated[
        str | None, typer.Option(metavar="OTHER", help="The engine that ratios refer to; default the first.")
    ] = None,
    threads: ThreadsOption = 1,
    seconds: Annotated[float, typer.Option(min=0.01, max=3600, help="Time each engine this long ...")] = 10.0,
    runs: Annotated[
        int, typer.Option(min=1, help="... or this many inferences, whichever comes first.")
    ] = 1024,
    quick: QuickOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time engines against each other.

    They run in alternation; the result is percentiles, and ratios with their intervals.
    """
    from edgeattn.cli_output import print_bench, print_json
    from edgeattn.pipeline import bench_engines
    from edgeattn.targets import TimingPlan

    timing = TimingPlan(min_runs=64 if quick else runs, min_seconds=seconds, threads=threads)
    result = bench_engines(engines, target, versus, timing)
    (print_json if as_json else print_bench)(result)


app.command(epilog=TUNE_EXAMPLES)(tune)
app.command(epilog=PROFILE_EXAMPLES)(profile)
app.command(epilog=SETUP_EXAMPLES)(setup)
app.command(epilog=KIT_EXAMPLES)(kit)
app.command(epilog=LINT_EXAMPLES)(lint)
app.command(epilog=CATALOGUE_EXAMPLES)(catalogue)
app.command(epilog=STUDY_EXAMPLES)(study)


app.command(epilog=PARITY_EXAMPLES)(parity)


@app.command(
    epilog=examples("edgeattn report runs/quickstart", "edgeattn report report.json --out page.html")
)
@handle_errors
def report(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder or its report.json.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: report.html beside the JSON.")
    ] = None,
) -> None:
    """Render a report's HTML page again."""
    from edgeattn.artifact import write_bytes
    from edgeattn.report import load_report
    from edgeattn.report_html import render_html

    found = load_report(source)
    folder = source if source.is_dir() else source.parent
    path = write_bytes(out if out is not None else folder / "report.html", render_html(found).encode())
    typer.echo(str(path))


@app.command(hidden=True)
@handle_errors
def readme(
    path: Annotated[Path, typer.Option(help="The file whose generated parts are rewritten.")] = Path(
        "README.md"
    ),
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; fail if it is out of date.")
    ] = False,
    keep: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="First save this run's report under recipes/reports. Repeatable."),
    ] = None,
    keep_parity: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="RUN PRINTED",
            help="First save under recipes/parity what `edgeattn parity RUN --json` printed; one a call.",
        ),
    ] = None,
) -> None:
    """Bring the generated parts of README.md up to date with what is saved under recipes."""
    from edgeattn.readme import keep_report, update_readme
    from edgeattn.report_parity import keep_parity as keep_comparison

    if keep_parity is not None:
        typer.echo(str(keep_comparison(*keep_parity, path.parent / "recipes" / "parity")))
    for run_folder in keep or ():
        typer.echo(str(keep_report(run_folder, path.parent / "recipes" / "reports")))
    changed = update_readme(path, check=check)
    typer.echo(f"{path}: {'out of date' if changed and check else 'updated' if changed else 'current'}")
    if changed and check:
        raise typer.Exit(1)


@app.command()
@handle_errors
def version(as_json: JsonOption = False) -> None:
    """Print versions, also of the runtimes."""
    import platform

    from edgeattn import __version__
    from edgeattn.cli_output import print_json
    from edgeattn.extras import installed_version

    names = ("torch", "nncf", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
    packages = {name: installed_version(name) for name in names}
    if as_json:
        print_json({"edgeattn": __version__, "python": platform.python_version(), "packages": packages})
        return
    typer.echo(f"edgeattn {__version__} (Python {platform.python_version()})")
    for name, found in packages.items():
        typer.echo(f"  {name} {found or 'absent'}")


def main() -> None:
    """Run the command line."""
    try:
        app()
    finally:
        # It has said how it ended; a second Ctrl-C would only break off what libraries do at exit, with a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
