"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from edgeattn.recipe import Recipe

__all__ = [
    "BgrOption",
    "FitOption",
    "InputShapeOption",
    "JsonOption",
    "NormalizationOption",
    "QuickOption",
    "RecipeArgument",
    "SetOption",
    "StrictOption",
    "ThreadsOption",
    "examples",
    "load_request",
    "parse_shape",
    "split_names",
]


def examples(*lines: str) -> str:
    """Return the part of a command's help that shows `lines`, kept as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only; progress goes to standard error.")]
RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; see recipes/.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value, such as train.epochs=3. Repeatable."),
]
ThreadsOption = Annotated[int, typer.Option(min=1, max=256, help="Threads of one inference.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="64 timed inferences: for a first look.")]

InputShapeOption = Annotated[
    str | None,
    typer.Option(
        metavar="1,C,H,W",
        help="Sizes of the image where the model leaves them open; an open batch alone is taken for 1.",
    ),
]

NormalizationOption = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="What images' values become: imagenet, unit (0 to 1), symmetric (-1 to 1), pixels (0 to 255), or MEAN/STD "
        "of pixels scaled to 0 to 1, such as 0.5/0.25. Default: what the model tells by what it does to its image "
        "first, else imagenet.",
    ),
]
FitOption = Annotated[
    Literal["crop", "stretch", "letterbox"] | None,
    typer.Option(help="What becomes of images of other proportions.  [default: crop]"),
]
BgrOption = Annotated[
    bool | None,
    typer.Option("--bgr/--rgb", help="Order of the channels.  [default: rgb]", show_default=False),
]

StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Fail the build of a target that tells that less of it runs in INT8 than the bound; without a bound, "
        "than every layer with weights.",
    ),
]


def load_request(path: Path, overrides: list[str] | None) -> Recipe:
    """Read a recipe with the changes of ``--set``."""
    from edgeattn.recipe import load_recipe

    return load_recipe(path, overrides or ())


def split_names(values: list[str] | None) -> list[str]:
    """Return the names in repeated, comma-separated options."""
    return [name.strip() for value in values or () for name in value.split(",") if name.strip()]


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Return the sizes in ``1,3,224,224`` or ``1x3x224x224``; None for no text.

    Raises:
        RecipeError: If it is no such shape of one image.
    """
    from edgeattn.errors import RecipeError

    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    sizes = tuple(int(part) for part in parts if part.strip().isascii() and part.strip().isdigit())
    if (
        len(sizes) != len(parts)
        or len(sizes) != 4
        or sizes[0] != 1
        or not 0 < min(sizes) <= max(sizes) <= 1 << 16
    ):
        raise RecipeError(f"--input-shape is {text!r}; expected one image's sizes, such as 1,3,224,224.")
    return sizes
