"""`edgeattn kit`: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeattn.cli_errors import handle_errors
from edgeattn.cli_options import JsonOption, examples

__all__ = ["KIT_EXAMPLES", "kit"]

KIT_EXAMPLES = examples(
    "edgeattn kit python --demo --out demo-python",
    "edgeattn kit web --demo --out demo-web",
    "edgeattn kit web runs/sign_digits_mobilenetv2_coord --out web-kit --webgpu",
    "edgeattn kit cpp RUN --out cpp-kit --images 20 --force",
    "edgeattn kit cpp out --classes labels.txt --data photos/ --out kit   # of what `edgeattn quantize` wrote",
    "edgeattn kit python RUN --out kit --json | jq .model.sha256",
)


@handle_errors
def kit(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="python, web, cpp or jetson.")],
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="Folder of a finished run, or of `edgeattn quantize`; left out with --demo."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder of the kit; absent or empty.")
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Take the sign-digits network that comes with edgeattn.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a kit in --out, with everything in that folder.")
    ] = False,
    images: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="Photographs for the self-test.")
    ] = 40,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The data set, where the run's recipe names another place; photographs for a model of your own.",
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Class names of a model of your own, one a line; default: numbers."
        ),
    ] = None,
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Below this probability an answer counts as not sure.")
    ] = 0.5,
    runtime: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="web: the npm package onnxruntime-web, unpacked; default: npm."),
    ] = None,
    webgpu: Annotated[
        bool, typer.Option("--webgpu", help="web: also for graphics processors, 27 MB more.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a folder that runs a network on its own.

    It holds the INT8 model with its preprocessing, class names and test photographs, and a program:
    python (a class, a command and an HTTP service), web (a page that works offline), cpp (a library with a
    C API, and a command) or jetson (TensorRT on a Jetson).
    """
    from edgeattn.cli_output import print_json
    from edgeattn.errors import RecipeError
    from edgeattn.kit import get_kit
    from edgeattn.kit.from_run import KitRequest
    from edgeattn.kit.write import write_kit
    from edgeattn.progress import make_progress

    if out is None:
        raise RecipeError("Say where the kit goes: --out DIR.")
    if demo and run is not None:
        raise RecipeError(f"--demo takes the network that comes with edgeattn, so {run} would be unused.")
    if not demo and run is None:
        raise RecipeError(
            "Name the folder of a finished run or of `edgeattn quantize`, or take the demonstration: --demo."
        )
    chosen = get_kit(kind)
    if runtime is not None or webgpu:
        if kind != "web":
            raise RecipeError(f"--runtime and --webgpu belong to the web kit, not to {kind}. Leave them out.")
        from edgeattn.kit.web import web_kit

        chosen = web_kit(runtime, webgpu=webgpu)
    request = KitRequest(images=images, data=data, classes=classes, min_confidence=min_confidence)
    with make_progress() as progress:
        model = write_kit(chosen, run, out, request=request, force=force, progress=progress)
    if as_json:
        print_json({"kind": chosen.name, "folder": str(out), **model.model_dump(mode="json")})
        return
    typer.echo(
        f"{out}: {chosen.summary}; {model.name}, {len(model.classes)} classes, "
        f"{model.preprocess.size}x{model.preprocess.size}, {model.model.size_bytes / 1e6:.2f} MB"
    )
    typer.echo("\n".join(("next:", f"  cd {out}", *(f"  {step}" for step in chosen.next_steps))))
