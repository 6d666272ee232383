"""How long work reports where it stands: one protocol, a live display, and plain lines.

The display goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO, runtime_checkable

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = [
    "LineProgress",
    "Progress",
    "ProgressDisplay",
    "RichProgress",
    "SilentProgress",
    "make_progress",
]


@runtime_checkable
class Progress(Protocol):
    """What long work calls; cheap enough to call for every batch."""

    def update(self, stage: str, done: float, total: float, **metrics: float) -> None:
        """Say that `done` of `total` of a stage is behind us, with figures worth seeing."""
        ...

    def note(self, text: str) -> None:
        """Say one thing in words."""
        ...


class ProgressDisplay(Progress, AbstractContextManager["ProgressDisplay"], Protocol):
    """A progress that occupies the terminal while its context is open."""


class SilentProgress:
    """Shows nothing: for libraries and tests."""

    def __enter__(self) -> SilentProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def update(self, stage: str, done: float, total: float, **metrics: float) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class LineProgress:
    """A few plain lines a stage: for logs, pipes and CI.

    Args:
        stream: Where to write; None for standard error.
        every_seconds: Least time between two lines of one stage.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        every_seconds: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._every = every_seconds
        self._clock = clock
        self._started: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._finished: set[str] = set()

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def update(self, stage: str, done: float, total: float, **metrics: float) -> None:
        """Write a line when a stage begins, from time to time, and when it ends."""
        now = self._clock()
        begins = stage not in self._started
        self._started.setdefault(stage, now)
        ends = total > 0 and done >= total
        if ends and stage in self._finished:
            return
        if stage in self._finished:
            # The same stage of the next of several runs.
            self._finished.discard(stage)
            self._started[stage], begins = now, True
        if not (begins or ends or now - self._last[stage] >= self._every):
            return
        self._last[stage] = now
        if ends:
            self._finished.add(stage)
        parts = [
            stage,
            f"{done:g}/{total:g}",
            _format_metrics(metrics),
            f"{now - self._started[stage]:.0f} s",
        ]
        self._write("  ".join(part for part in parts if part))

    def note(self, text: str) -> None:
        """Write a line."""
        self._write(text)

    def _write(self, line: str) -> None:
        stream = self._stream if self._stream is not None else sys.stderr
        stream.write(line + "\n")
        stream.flush()


class RichProgress:
    """Live bars with elapsed and remaining time: for a terminal.

    Args:
        stream: The terminal; None for standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[metrics]}", markup=False),
            console=Console(file=stream if stream is not None else sys.stderr),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, stage: str, done: float, total: float, **metrics: float) -> None:
        """Move the stage's bar."""
        text = _format_metrics(metrics)
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, completed=int(done), metrics=text)
            return
        task = self._tasks[stage]
        fields: dict[str, Any] = {"metrics": text} if text else {}
        if done < total and self._bars.tasks[self._bars.task_ids.index(task)].finished:
            # The same stage of the next of several runs: its time begins anew.
            self._bars.reset(task, total=total, completed=int(done), **fields)
            return
        self._bars.update(task, completed=done, total=total, **fields)

    def note(self, text: str) -> None:
        """Write a line above the bars."""
        self._bars.console.print(text, markup=False, highlight=False)


def make_progress(stream: TextIO | None = None) -> ProgressDisplay:
    """Return live bars where `stream` (standard error) is a terminal, otherwise plain lines."""
    target = stream if stream is not None else sys.stderr
    return RichProgress(target) if target.isatty() else LineProgress(stream)


def _format_metrics(metrics: dict[str, float]) -> str:
    return " ".join(f"{name}={value:.4g}" for name, value in metrics.items())
