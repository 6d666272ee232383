"""Read a recipe's YAML strictly, remembering the line of every key.

YAML allows more than a recipe needs. Aliases (which can expand a kilobyte into gigabytes), tags,
repeated keys and numbers that are not finite are refused, with the line they stand on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from edgeattn.errors import RecipeError

__all__ = ["Located", "apply_override", "parse_yaml"]

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 20

Keys = tuple[str | int, ...]


@dataclasses.dataclass
class Located:
    """Plain YAML values, and where each was written."""

    file: str
    value: dict[str, Any]
    lines: dict[Keys, int]
    overrides: dict[Keys, str] = dataclasses.field(default_factory=dict)

    def known_part(self, keys: Sequence[str | int]) -> Keys:
        """Return the longest prefix of `keys` that was written somewhere.

        Pydantic's error locations go on with the names of union members, which no file contains.
        """
        known: list[str | int] = []
        here: Any = self.value
        for key in keys:
            inside = (isinstance(here, dict) and key in here) or (
                isinstance(here, list) and isinstance(key, int) and key < len(here)
            )
            if not inside:
                break
            here = here[key]
            known.append(key)
        return tuple(known)

    def describe(self, keys: Sequence[str | int]) -> str:
        """Return ``file:line`` or ``--set a.b=c`` for the innermost written part of `keys`."""
        for length in range(len(keys), -1, -1):
            prefix = tuple(int(k) if isinstance(k, str) and k.isdigit() else k for k in keys[:length])
            if prefix in self.overrides:
                return f"--set {self.overrides[prefix]}"
            if prefix in self.lines:
                return f"{self.file}:{self.lines[prefix]}"
        return self.file


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses aliases, tags and deep nesting while it composes."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's parser is untyped
        problem = ""
        if isinstance(event, yaml.AliasEvent):
            problem = "aliases (*name) are not allowed"
        elif getattr(event, "tag", None) is not None:
            problem = "tags (!name) are not allowed"
        elif self._depth >= _MAX_DEPTH:
            problem = "nested too deeply"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def parse_yaml(path: Path) -> Located:
    """Read a YAML file whose top level is a mapping.

    Raises:
        RecipeError: If it cannot be read or is not such a file.
    """
    try:
        if path.is_dir():
            raise RecipeError(
                f"{path} is a folder; name a recipe file in it, such as recipes/quickstart.yaml."
            )
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as exc:
        raise RecipeError(
            f"Cannot read the recipe {path}: {exc.strerror or exc}. Recipes that come with edgeattn lie in recipes/."
        ) from exc
    except ValueError as exc:
        raise RecipeError(f"Cannot read the recipe {str(path)!r}: {exc}.") from exc
    if len(data) > _MAX_BYTES:
        raise RecipeError(
            f"{path} is larger than 1 MB; a recipe has about a hundred lines. Is it the right file?"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise RecipeError(f"{path} is not UTF-8 text (byte {exc.start}). Is it the right file?") from exc
    lines: dict[Keys, int] = {}
    value = _parse(text, str(path), lines)
    if value is None:
        raise RecipeError(f"{path} is empty. A recipe needs name, data, calibration and targets.")
    if not isinstance(value, dict):
        raise RecipeError(f"{path}:1: expected keys and values, got {type(value).__name__}.")
    return Located(str(path), value, lines)


def apply_override(located: Located, override: str) -> None:
    """Set one value as ``--set a.b=c`` asks; `c` is YAML.

    Raises:
        RecipeError: If it is not of that form, or goes through something that is not a section.
    """
    dotted, equals, text = override.partition("=")
    keys: Keys = tuple(part.strip() for part in dotted.split("."))
    if not equals or not all(keys):
        raise RecipeError(f"--set {override}: expected key=value, such as train.epochs=3.")
    value = _parse(text, f"--set {override}", {})
    holder = located.value
    for depth, key in enumerate(keys[:-1]):
        inner = holder.get(str(key))
        if inner is None:
            inner = holder[str(key)] = {}
            located.overrides[keys[: depth + 1]] = override
        if not isinstance(inner, dict):
            section = ".".join(str(k) for k in keys[: depth + 1])
            raise RecipeError(f"--set {override}: {section} is {inner!r}, not a section with keys.")
        holder = inner
    holder[str(keys[-1])] = value
    for written in [known for known in located.lines if known[: len(keys)] == keys]:
        del located.lines[written]
    located.overrides[keys] = override


def _parse(text: str, where: str, lines: dict[Keys, int]) -> Any:
    loader = None
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _index_lines(node, (), lines, where)
        value = loader.construct_document(node)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = f":{mark.line + 1}" if mark and not where.startswith("--set") else ""
        raise RecipeError(f"{where}{line}: not valid here: {exc.problem or exc.context}.") from exc
    except yaml.YAMLError as exc:
        raise RecipeError(f"{where}: not valid YAML: {exc}.") from exc
    except (ValueError, OverflowError, RecursionError) as exc:  # of numbers and dates that cannot be
        raise RecipeError(f"{where}: a value cannot be read: {exc}.") from exc
    finally:
        if loader is not None:
            loader.dispose()
    _refuse_non_finite(value, (), where, lines)
    return value


def _index_lines(node: yaml.Node, keys: Keys, lines: dict[Keys, int], where: str) -> None:
    lines.setdefault(keys, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            at = key_node.start_mark.line + 1
            place = where if where.startswith("--set") else f"{where}:{at}"
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise RecipeError(f"{place}: a key must be plain text, got {_text_of(key_node)}.")
            inner = (*keys, key_node.value)
            if inner in lines:
                dotted = ".".join(str(key) for key in inner)
                raise RecipeError(
                    f"{place}: {dotted} is given twice (first on line {lines[inner]}). Keep one of them."
                )
            lines[inner] = at
            _index_lines(value_node, inner, lines, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _index_lines(item, (*keys, index), lines, where)


def _text_of(node: yaml.Node) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or mapping"


def _refuse_non_finite(value: Any, keys: Keys, where: str, lines: dict[Keys, int]) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        line = "" if where.startswith("--set") else f":{lines.get(keys, 1)}"
        raise RecipeError(
            f"{where}{line}: {'.'.join(map(str, keys))}: expected a finite number, got {value}."
        )
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        _refuse_non_finite(item, (*keys, key), where, lines)
