"""`edgeattn tune`: what is fastest on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from edgeattn.cli_errors import handle_errors
from edgeattn.cli_options import JsonOption, RecipeArgument, SetOption, examples, load_request

__all__ = ["TUNE_EXAMPLES", "tune"]

TUNE_EXAMPLES = examples(
    "edgeattn tune recipes/quickstart.yaml",
    "edgeattn tune recipes/quickstart.yaml --target openvino-cpu --threads 2 --again",
    "edgeattn tune recipes/sign_digits_mobilenetv2_eca.yaml --target tensorrt-rtx",
    "edgeattn tune recipes/quickstart.yaml --set 'tune={by_gate: true}' --run runs/quickstart",
    "edgeattn tune recipes/sign_digits_mobilenetv2_eca.yaml --target jetson-ssh --rank-by dla",
    "edgeattn run recipes/quickstart.yaml --set tune={}   # tunes if needed, builds what is fastest",
)


@handle_errors
def tune(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    target: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where to be fast; default the recipe's first target.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=256, help="Threads of one inference; default the recipe's.")
    ] = None,
    rank_by: Annotated[
        Literal["speed", "dla"] | None,
        typer.Option(help="dla: fewest hand-overs between DLA and GPU; default the recipe's tune.rank_by."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="With tune.by_gate: a run of the recipe, whose trained network tells what each gate costs.",
        ),
    ] = None,
    again: Annotated[bool, typer.Option(help="Measure even if this machine has an answer.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find the fastest exact forms of a recipe's attention here.

    Forms do not change the network's function. Gate policies do, so they are only put in order of speed;
    a run with tune takes the fastest that keeps accept's bounds, and with tune.by_gate the fastest mix. What is found
    is kept for this machine, runtime and network, and reused. Where no device is, tensorrt-rtx ranks by the kernels
    that it builds.
    """
    changes = list(overrides or ())
    request = load_request(recipe, changes)
    if rank_by is not None:
        spec = request.tune.model_dump(mode="json") if request.tune else {}
        request = load_request(recipe, [*changes, f"tune={json.dumps({**spec, 'rank_by': rank_by})}"])

    from edgeattn.cli_output import print_gates, print_json, print_tuning
    from edgeattn.extras import require
    from edgeattn.progress import make_progress

    require("torch", purpose="tuning")
    from edgeattn.pipeline_tune import tune as search
    from edgeattn.pipeline_tune_store import TuningStore

    store = TuningStore()
    gates = None
    if run is not None:
        from edgeattn.pipeline_gates import gates_of_run, weights_of_run

        weights_of_run(request, run)  # before minutes of measuring
    with make_progress() as progress:
        tuning = search(request, target=target, threads=threads, again=again, store=store, progress=progress)
        if run is not None:
            gates = gates_of_run(request, run, tuning, again=again, store=store, progress=progress)
    if as_json:
        both = (
            {"tuning": tuning.model_dump(mode="json"), "gates": gates.model_dump(mode="json")}
            if gates
            else None
        )
        print_json(both or tuning.model_dump(mode="json"))
        return
    print_tuning(tuning.model_dump(), store.path(tuning.key))
    if gates is not None:
        print_gates(gates.model_dump(), store.path(gates.key))
