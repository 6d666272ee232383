"""One progress for several steps."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["JoinedProgress", "Progress"]

Progress = Callable[[int, int], None]


class JoinedProgress:
    """Joins the progress of several steps into one, in thousandths."""

    TOTAL = 1000

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._begun = progress, 0.0

    def part(self, share: float) -> Progress:
        """Return the callback of the next step, which takes about `share` of the time."""
        begun = self._begun
        self._begun = min(begun + share, 1.0)

        def report(done: int, total: int) -> None:
            if self._progress:
                here = min(begun + share * done / max(total, 1), 1.0)
                self._progress(int(here * self.TOTAL), self.TOTAL)

        return report

    def finish(self) -> None:
        """Report the end."""
        if self._progress:
            self._progress(self.TOTAL, self.TOTAL)
