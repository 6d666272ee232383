"""Mobile attention in INT8: build it, quantize it, and prove that every edge runtime agrees.

The names below are the public face; each is imported when it is first used, so that
``import edgeattn`` stays quick and needs no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeattn.errors import EdgeAttnError
    from edgeattn.pipeline import run_recipe
    from edgeattn.recipe import Recipe, load_recipe
    from edgeattn.report import Report, load_report

__version__ = "0.1.0"

__all__ = [
    "EdgeAttnError",
    "Recipe",
    "Report",
    "__version__",
    "load_recipe",
    "load_report",
    "run_recipe",
]

_MODULE_OF_NAME = {
    "EdgeAttnError": "edgeattn.errors",
    "Recipe": "edgeattn.recipe",
    "Report": "edgeattn.report",
    "load_recipe": "edgeattn.recipe",
    "load_report": "edgeattn.report",
    "run_recipe": "edgeattn.pipeline",
}


def __getattr__(name: str) -> object:
    try:
        module = _MODULE_OF_NAME[name]
    except KeyError:
        raise AttributeError(f"module 'edgeattn' has no attribute {name!r}") from None
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
