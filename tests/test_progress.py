"""Progress is a few lines in a log and bars on a terminal."""

from __future__ import annotations

import io

from edgeattn.progress import LineProgress, Progress, RichProgress, SilentProgress, make_progress


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_lines_are_few() -> None:
    """A thousand updates in a minute are a handful of lines: first, now and then, last."""
    stream, clock = io.StringIO(), Clock()
    with LineProgress(stream, every_seconds=15, clock=clock) as progress:
        for step in range(1, 1001):
            clock.now = step * 0.06
            progress.update("train", step, 1000, loss=1 / step)
        progress.update("train", 1000, 1000)
        progress.note("done")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train  1/1000  loss=1  0 s"
    assert lines[-2].startswith("train  1000/1000  loss=0.001  60 s")
    assert lines[-1] == "done"
    assert len(lines) <= 7


def test_a_stage_that_begins_again_has_a_first_line_and_a_last_one_again() -> None:
    stream, clock = io.StringIO(), Clock()
    with LineProgress(stream, clock=clock) as progress:
        for start in (0, 100):
            for step in (0, 5, 10):
                clock.now = start + step
                progress.update("train", step, 10)
            progress.update("train", 10, 10)
    first = ["train  0/10  0 s", "train  10/10  10 s"]
    assert stream.getvalue().splitlines() == first * 2


def test_a_bar_that_begins_again_counts_its_own_time() -> None:
    with RichProgress(Terminal()) as progress:
        progress.update("train", 0, 2)
        progress.update("train", 2, 2)
        (task,) = progress._bars.tasks
        assert task.finished
        before = task.start_time
        progress.update("train", 1, 4, loss=0.5)
        assert not task.finished and (task.completed, task.total) == (1, 4)
        assert task.start_time is not None and before is not None and task.start_time > before


def test_a_stream_that_is_no_terminal_gets_lines() -> None:
    assert isinstance(make_progress(io.StringIO()), LineProgress)
    assert isinstance(make_progress(Terminal()), RichProgress)


def test_bars_show_stages_and_notes() -> None:
    """Brackets in a name are shown, not read as markup."""
    stream = Terminal()
    with RichProgress(stream) as progress:
        progress.update("build [ort]", 0, 2)
        progress.update("build [ort]", 2, 2, loss=0.5)
        progress.note("saved [bold]x")
    assert "build [ort]" in stream.getvalue()
    assert "saved [bold]x" in stream.getvalue()


def test_all_keep_the_contract() -> None:
    for progress in (SilentProgress(), LineProgress(io.StringIO()), RichProgress(Terminal())):
        assert isinstance(progress, Progress)
