"""A picture of a profile: one bar for every block, of the kinds of work in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeattn.errors import ArtifactError, RecipeError
from edgeattn.extras import require
from edgeattn.measure.profile import Profile, ProfiledLayer
from edgeattn.measure.work import CATEGORIES

__all__ = ["check_picture", "save_picture"]

_SUFFIXES = (".svg", ".png", ".pdf")


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be made, before anything is measured for it.

    Raises:
        RecipeError: If the file name says no format that is known here.
        MissingExtraError: If matplotlib is absent.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise RecipeError(f"{path} is no picture; expected a name that ends in {', '.join(_SUFFIXES)}.")
    require("matplotlib", purpose="the picture of a profile")


def save_picture(profile: Profile, title: str, path: Path) -> Path:
    """Draw a profile.

    Args:
        profile: Of one engine.
        title: Above the bars.
        path: A file ending in .svg, .png or .pdf.

    Raises:
        RecipeError: If it ends in something else.
        MissingExtraError: If matplotlib is absent.
        ArtifactError: If the file cannot be written.
    """
    check_picture(path)
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    bars = _bars(profile.layers)
    kinds = [kind for kind in CATEGORIES if any(kind in parts for parts in bars.values())]
    figure = Figure(figsize=(9, 1.6 + 0.28 * len(bars)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(bars)
    for kind in kinds:
        widths = [parts.get(kind, 0.0) for parts in bars.values()]
        color = colormaps["tab10"](CATEGORIES.index(kind))
        axes.barh(range(len(bars)), widths, left=left, label=kind, color=color, height=0.75)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    # Positions, not names, place the bars; a dollar sign in a name is a dollar sign.
    axes.set_yticks(range(len(bars)), list(bars), parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("µs, as the runtime's profiler reports")
    axes.set_title(title, parse_math=False)
    axes.set_xlim(0, 1.03 * max(left, default=1.0))
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as exc:
        raise ArtifactError(f"Cannot write {path}: {exc.strerror or exc}.") from exc
    return path


def _bars(layers: Sequence[ProfiledLayer]) -> dict[str, dict[str, float]]:
    """Return microseconds by block and kind of work; an attention module is drawn in its block's bar."""
    blocks = {layer.group for layer in layers if layer.category != "attention"}
    bars: dict[str, dict[str, float]] = {}
    for layer in layers:
        around = [block for block in blocks if layer.group.startswith(f"{block}/")]
        block = max(around, key=len, default=layer.group) if layer.category == "attention" else layer.group
        parts = bars.setdefault(block, {})
        parts[layer.category] = parts.get(layer.category, 0.0) + layer.latency_us
    return bars
