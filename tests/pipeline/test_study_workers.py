"""Cells of a study in several processes: what they say is heard, and one that dies takes nobody's voice."""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures.process import BrokenProcessPool

import pytest

from edgeattn.errors import DataError
from edgeattn.pipeline_study_workers import open_workers
from edgeattn.progress import Progress


class Heard:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.updates: list[tuple[str, float, float, dict[str, float]]] = []
        self.notes: list[str] = []

    def update(self, stage: str, done: float, total: float, **metrics: float) -> None:
        """Keep it."""
        self.updates.append((stage, done, total, metrics))

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)


def work(job: str, progress: Progress) -> str:
    """Do what the job says."""
    progress.note(f"{job} begins")
    if job == "fail":
        raise DataError("There is no image.")
    for step in range(1001):
        progress.update("train", step, 1000, loss=0.5)
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{job} by {os.getpid()} with {os.environ['OMP_NUM_THREADS']} thread"


def test_what_workers_do_is_seen_by_worker() -> None:
    heard = Heard()
    with open_workers(2, heard) as executor:
        results = [executor.submit(work, job).result(timeout=120) for job in ("first", "second")]
    assert all(result.endswith("with 1 thread") for result in results)
    assert {note.split(": ")[1] for note in heard.notes} == {"first begins", "second begins"}
    assert all(note.startswith("worker ") for note in heard.notes)
    own = [item for item in heard.updates if item[0] == heard.updates[0][0]]
    assert own[0] == (own[0][0], 0, 1000, {"loss": 0.5})
    assert own[0][0] in ("worker 1: train", "worker 2: train")
    assert [item for item in heard.updates if item[1] == 1000]
    # A thousand steps within half a second are a few messages.
    assert len(heard.updates) < 50


def test_one_worker_is_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    heard = Heard()
    with open_workers(1, heard) as executor:
        result = executor.submit(work, "only")
    assert f"by {os.getpid()} " in result.result()
    assert heard.notes == ["only begins"]
    assert len(heard.updates) == 1001


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_is_the_futures(count: int) -> None:
    heard = Heard()
    with open_workers(count, heard) as executor:
        failed = executor.submit(work, "fail")
        with pytest.raises(DataError, match="There is no image"):
            failed.result(timeout=120)
    assert [note for note in heard.notes if note.endswith("fail begins")]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_worker_that_is_killed_breaks_the_pool_and_hangs_nothing() -> None:
    heard, before = Heard(), threading.active_count()
    with open_workers(2, heard) as executor:
        doomed = executor.submit(work, "die")
        with pytest.raises(BrokenProcessPool):
            doomed.result(timeout=120)
    assert [note for note in heard.notes if note.endswith("die begins")]
    assert threading.active_count() == before
