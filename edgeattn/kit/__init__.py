"""Kits: folders that run a network on their own, with nothing of edgeattn installed.

A kit is the program files of ``deploy/<kind>/`` and a ``model/`` folder that all kinds share. Each kind is a
module of this package with a `KitKind` called ``KIND``.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeattn.errors import RecipeError, close_matches_hint

if TYPE_CHECKING:
    from edgeattn.kit.spec import KitModel

__all__ = ["KitKind", "get_kit", "kit_names"]

_NAMES = ("python", "web", "cpp", "jetson")


@dataclasses.dataclass(frozen=True)
class KitKind:
    """One kind of kit.

    Attributes:
        name: Also the name of its module and of its folder under ``deploy/``.
        summary: What it is, in a few words.
        write_program: Called with the kit's folder, which holds a finished ``model/`` already, and with
            what ``model.json`` says; writes everything else.
        next_steps: Commands to try, run in the kit's folder.
        profile: The model's spelling.
        variants: Further spellings that it needs.
    """

    name: str
    summary: str
    write_program: Callable[[Path, KitModel], None]
    next_steps: tuple[str, ...]
    profile: Literal["u8", "s8"] = "u8"
    variants: tuple[str, ...] = ()


def kit_names() -> tuple[str, ...]:
    """Return the kinds of kits there are."""
    return tuple(name for name in _NAMES if importlib.util.find_spec(f"{__name__}.{name}") is not None)


def get_kit(name: str) -> KitKind:
    """Return the kind of kit called `name`.

    Raises:
        RecipeError: If there is none; the message names close matches.
    """
    known = kit_names()
    if name not in known:
        raise RecipeError(f"Unknown kind of kit {name!r}. {close_matches_hint(name, known)}")
    kind: KitKind = importlib.import_module(f"{__name__}.{name}").KIND
    return kind
