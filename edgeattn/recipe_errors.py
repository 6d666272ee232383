"""What is wrong with a recipe, said so that it can be mended: the line, the key, what was got, close matches."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from edgeattn.errors import close_matches_hint
from edgeattn.recipe_yaml import Located

__all__ = ["explain"]


def explain(exc: ValidationError, located: Located, root: type[BaseModel]) -> str:
    """Turn pydantic's errors into lines that name the place, the key, what was got and the fix.

    Args:
        exc: What validating `located` raised.
        located: The values, with the places that they were read from.
        root: The model that was validated, whose sections are searched for a misplaced key.
    """
    by_key: dict[tuple[str, ...], list[str]] = {}
    for error in exc.errors(include_url=False, include_context=False):
        known = located.known_part(error["loc"])
        keys = tuple(str(part) for part in known)
        if error["type"] == "missing":
            keys = (*keys, str(error["loc"][-1]))
        by_key.setdefault(keys, [])
        text = _explain_one(dict(error), keys, root)
        if text not in by_key[keys]:
            by_key[keys].append(text)
    lines = [
        f"{located.describe(keys)}: {'.'.join(keys)}{': ' if keys else ''}{'; or '.join(texts)}"
        for keys, texts in by_key.items()
    ]
    shown = lines[:6]
    if len(lines) > len(shown):
        shown.append(f"... and {len(lines) - len(shown)} more")
    return "\n  ".join(shown)


def _explain_one(error: dict[str, Any], keys: tuple[str, ...], root: type[BaseModel]) -> str:
    kind, got = str(error["type"]), _shorten(error["input"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"unknown key {keys[-1]!r}. {_hint_for_key(keys, root)}"
    if kind == "missing":
        return "this key is required"
    if kind == "value_error":
        return message
    return f"{message[0].lower()}{message[1:]}, got {got}"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _hint_for_key(keys: tuple[str, ...], root: type[BaseModel]) -> str:
    """Say how the key is spelled here, or in which section it belongs."""
    sections = dict(_walk_sections(root))
    *parents, key = keys
    here = sections.get(tuple(parents), ())
    elsewhere = [".".join((*section, key)) for section, fields in sections.items() if key in fields]
    hint = close_matches_hint(key, here)
    if elsewhere and not hint.startswith("Did"):
        return f"It belongs elsewhere: {' or '.join(elsewhere)}."
    return hint


def _walk_sections(
    model: type[BaseModel], prefix: tuple[str, ...] = ()
) -> Iterable[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield every section's path with its keys."""
    yield prefix, tuple(model.model_fields)
    for name, field in model.model_fields.items():
        options = (field.annotation,)
        if typing.get_origin(field.annotation) in (typing.Union, types.UnionType):
            options = typing.get_args(field.annotation)
        for option in options:
            if isinstance(option, type) and issubclass(option, BaseModel):
                yield from _walk_sections(option, (*prefix, name))
