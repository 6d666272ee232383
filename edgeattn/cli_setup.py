"""`edgeattn setup`: get what a target needs and pip cannot install."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from edgeattn.cli_errors import handle_errors
from edgeattn.cli_options import JsonOption, examples

__all__ = ["SETUP_EXAMPLES", "setup"]

SETUP_EXAMPLES = examples(
    "edgeattn setup arm64", "EDGEATTN_CACHE=/var/cache/edgeattn edgeattn setup arm64 --json"
)


@handle_errors
def setup(
    what: Annotated[Literal["arm64"], typer.Argument(metavar="TARGET", help="arm64.")],
    again: Annotated[bool, typer.Option("--again", help="Remove what is there and set up anew.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Get what a target needs and pip cannot install.

    arm64: Debian's arm64 Python and the aarch64 wheels of ONNX Runtime and OpenVINO, 90 MB to download, go
    into the cache folder ($EDGEATTN_CACHE, or else ~/.cache/edgeattn), where QEMU runs them. Needs apt and
    qemu-user-static, not root. Running it again does nothing; what an interrupted run downloaded is used.
    """
    from edgeattn.cli_output import print_json
    from edgeattn.progress import make_progress
    from edgeattn.targets.arm64_setup import setup_arm64

    with make_progress() as progress:
        environment = setup_arm64(again=again, progress=progress)
    if as_json:
        print_json(environment.to_json())
        return
    typer.echo(f"{environment.folder}")
    for name, version in environment.versions.items():
        typer.echo(f"  {name} {version}")
