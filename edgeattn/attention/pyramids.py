"""What fusions of pyramids check and share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch.nn import functional

from edgeattn.errors import ModelError, RecipeError

__all__ = ["check_channels", "check_levels", "enlarge"]


def check_channels(kind: str, channels: Sequence[int], least: int = 2) -> list[int]:
    """Return the channels of the levels, finest first.

    Raises:
        RecipeError: If there are too few levels, or a number is not positive.
    """
    if len(channels) < least or any(count < 1 for count in channels):
        raise RecipeError(f"{kind} needs the channels of at least {least} levels, got {list(channels)}.")
    return list(channels)


def check_levels(kind: str, maps: Sequence[torch.Tensor], channels: Sequence[int]) -> None:
    """Check that there is a map for each level, of its channels, each half as large as the one before.

    Raises:
        ModelError: Otherwise.
    """
    got = [tuple(item.shape) for item in maps]
    fits = len(got) == len(channels) and all(
        len(shape) == 4 and shape[1] == count for shape, count in zip(got, channels, strict=False)
    )
    halves = fits and all(
        (fine[2] + 1) // 2 == coarse[2] and (fine[3] + 1) // 2 == coarse[3]
        for fine, coarse in itertools.pairwise(got)
    )
    if not halves:
        raise ModelError(
            f"{kind} takes maps of {list(channels)} channels, finest first, each half as large as the one "
            f"before (rounded up), got {got}."
        )


def enlarge(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Repeat the nearest values until `x` is as large as `like`."""
    return functional.interpolate(x, size=like.shape[2:], mode="nearest")
