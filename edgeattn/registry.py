"""A named collection of things that can be looked up, with helpful misses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from edgeattn.errors import RecipeError, close_matches_hint

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """An ordered mapping from a unique name to a registered thing.

    Args:
        noun: What one entry is called in messages, such as ``"attention"``.
    """

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> T:
        """Add `entry` under `name`.

        Raises:
            ValueError: If the name is taken: a second registration is a mistake, not an update.
        """
        if name in self._entries:
            raise ValueError(f"{self._noun} {name!r} is already registered; choose another name.")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> T:
        """Return the entry called `name`.

        Raises:
            RecipeError: If there is none; the message names close matches.
        """
        try:
            return self._entries[name]
        except KeyError:
            hint = close_matches_hint(name, self._entries)
            raise RecipeError(f"Unknown {self._noun} {name!r}. {hint}") from None

    def names(self) -> tuple[str, ...]:
        """Return all names in the order of registration."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
