"""Where a study's cells are computed: in this process, or in several at a time that say how far they are."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any

from edgeattn.errors import EdgeAttnError
from edgeattn.pipeline_study_cell import end_with_parent
from edgeattn.progress import Progress, SilentProgress

__all__ = ["open_workers"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LEAST_SECONDS = 0.5
"""Between two messages of a worker about one stage."""
_POLL_SECONDS = 0.2


@contextlib.contextmanager
def open_workers(count: int, progress: Progress) -> Iterator[Executor]:
    """Yield what runs functions of a job and a progress, the keyword ``progress``.

    Args:
        count: Of processes, each with one thread; 1 stays in this one.
        progress: Hears how far each of them is.
    """
    if count == 1:
        yield _Here(progress)
        return
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    # Processes that are started inherit it: each is to use one core.
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    context = multiprocessing.get_context("spawn")
    # A pipe for each worker, since one that is killed would keep the lock of a shared queue.
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    number = context.Value("i", 0)
    pool = _Pool(
        count,
        mp_context=context,
        initializer=_begin,
        initargs=(os.getpid(), [writer for _, writer in pipes], number),
    )
    ended = threading.Event()
    listener = threading.Thread(
        target=_listen, args=([reader for reader, _ in pipes], progress, ended), daemon=True
    )
    listener.start()
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        ended.set()
        listener.join()
        for pipe in pipes:
            for end in pipe:
                end.close()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Here(Executor):
    """Runs one cell at a time in this process, so that its own progress is seen."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]  # the base is generic in it
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, progress=self._progress, **kwargs))
        except EdgeAttnError as exc:
            future.set_exception(exc)
        return future


class _Pool(ProcessPoolExecutor):
    """Runs functions in processes, each with the progress of its process."""

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]  # the base is generic in it
        return super().submit(_call, fn, *args, **kwargs)


class _Reporter:
    """A worker's progress: sends what it hears to the process that began it."""

    def __init__(self, pipe: Connection, number: int) -> None:
        self._pipe, self._name = pipe, f"worker {number}"
        self._last: dict[str, float] = {}

    def update(self, stage: str, done: float, total: float, **metrics: float) -> None:
        """Send where a stage stands, if that was not just said."""
        now = time.monotonic()
        if 0 < done < total and now - self._last.get(stage, 0.0) < _LEAST_SECONDS:
            return
        self._last[stage] = now
        self._send(("update", f"{self._name}: {stage}", done, total, metrics))

    def note(self, text: str) -> None:
        """Send a line."""
        self._send(("note", f"{self._name}: {text}", 0.0, 0.0, {}))

    def _send(self, message: tuple[str, str, float, float, dict[str, float]]) -> None:
        # Nobody may be listening any more; the work goes on until this process is ended.
        with contextlib.suppress(OSError):
            self._pipe.send(message)


_reporter: _Reporter | None = None


def _begin(parent: int, pipes: list[Connection], number: Any) -> None:
    global _reporter
    end_with_parent(parent)
    with number.get_lock():
        index, number.value = number.value, number.value + 1
    if index < len(pipes):
        _reporter = _Reporter(pipes[index], index + 1)


def _call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return fn(*args, progress=_reporter or SilentProgress(), **kwargs)


def _listen(pipes: list[Connection], progress: Progress, ended: threading.Event) -> None:
    """Pass on what workers say until they have ended."""
    while True:
        is_last = ended.is_set()
        ready = wait(pipes, timeout=0 if is_last else _POLL_SECONDS)
        for pipe in [pipe for pipe in pipes if pipe in ready]:
            try:
                kind, text, done, total, metrics = pipe.recv()
            except (EOFError, OSError):
                pipes.remove(pipe)
                continue
            if kind == "note":
                progress.note(text)
            else:
                progress.update(text, done, total, **metrics)
        if is_last and not ready:
            return
