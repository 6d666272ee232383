"""The errors that edgeattn raises, and the exit code each one ends a command with.

* EdgeAttnError (1)
  + RecipeError(ValueError) (2): what was asked for is not valid
  + DataError(ValueError) (2): an image, data set or manifest cannot be used
  + ModelError(ValueError) (2): a model or weights file cannot be used
  + MissingExtraError(ImportError) (3): a package that this step needs is absent
  + TargetUnavailable (3): a target cannot run on this machine
  + ParityError (4): engines or numbers do not agree within the accepted bounds
  + CoverageError (4): less of a built network runs in INT8 than was asked for
  + ArtifactError (1): a file changed, is missing, or could not be written

Every message says what is wrong, what was got, and how to fix it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "ArtifactError",
    "CoverageError",
    "DataError",
    "EdgeAttnError",
    "MissingExtraError",
    "ModelError",
    "ParityError",
    "RecipeError",
    "TargetUnavailable",
    "close_matches_hint",
]


class EdgeAttnError(Exception):
    """Base of every error that edgeattn raises on purpose."""

    exit_code: int = 1


class RecipeError(EdgeAttnError, ValueError):
    """A recipe, option or request is not valid."""

    exit_code = 2


class DataError(EdgeAttnError, ValueError):
    """An image, a data set or a calibration manifest cannot be used."""

    exit_code = 2


class ModelError(EdgeAttnError, ValueError):
    """A model or a weights file cannot be used as it is."""

    exit_code = 2


class MissingExtraError(EdgeAttnError, ImportError):
    """An optional package that this step needs is not installed."""

    exit_code = 3


class TargetUnavailable(EdgeAttnError):
    """A target cannot build or run on this machine."""

    exit_code = 3


class ParityError(EdgeAttnError):
    """Numbers that must agree do not."""

    exit_code = 4


class CoverageError(EdgeAttnError):
    """Less of a network runs in INT8 than was asked for.

    Args:
        message: What is missing, and where.
        build: Details of the engine, which is not kept.
    """

    exit_code = 4

    def __init__(self, message: str, build: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.build = dict(build)


class ArtifactError(EdgeAttnError):
    """An artifact is missing, was changed after it was written, or could not be written."""

    exit_code = 1


def close_matches_hint(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names the known spellings closest to `name`."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(repr(match) for match in close) + "?"
    return "Known: " + ", ".join(known) + "."
