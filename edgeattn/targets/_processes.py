"""Programs that are run here: heard line by line, ended when they hang, never left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from edgeattn.errors import TargetUnavailable

__all__ = ["KEPT_BYTES", "LinkDropped", "ended", "run_process"]

KEPT_BYTES = 20_000
"""Of what a program printed, this much is kept for messages."""

_LINE_BYTES = 4000


class LinkDropped(TargetUnavailable):
    """The connection ended or was not made; trying again may help."""


def run_process(
    command: Sequence[str],
    on_line: Callable[[str, int], None] | None,
    seconds: float,
    cwd: Path | None = None,
) -> tuple[int, str]:
    """Run a program here, hear its lines, and end it after `seconds` of silence.

    Args:
        command: The argument list.
        on_line: Hears each line, without what cannot be printed, and its length in bytes with its end.
        seconds: How long it may say nothing.
        cwd: Where it runs.

    Returns:
        Its exit code and the end of what it printed, on either stream.

    Raises:
        LinkDropped: If it was silent for too long.
        TargetUnavailable: If it cannot be started.
    """
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as exc:
        raise TargetUnavailable(
            f"{command[0]} cannot be started: {exc.strerror}. Install it: apt-get install openssh-client"
        ) from exc
    heard = time.monotonic()
    silent = threading.Event()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            if time.monotonic() - heard > seconds:
                silent.set()
                process.kill()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    kept = ""
    with ended(process):
        stdout: IO[bytes] | None = process.stdout
        # A line without an end must not fill the memory.
        while stdout is not None and (data := stdout.readline(_LINE_BYTES)):
            heard = time.monotonic()
            text = data.decode(errors="replace")
            kept = (kept + text)[-KEPT_BYTES:]
            if on_line is not None and data.endswith(b"\n"):
                on_line("".join(c for c in text if c.isprintable()), len(data))
            elif on_line is not None:
                on_line("", len(data))
        code = process.wait()
        done.set()
    watcher.join()
    if silent.is_set():
        raise LinkDropped(f"{command[0]} said nothing for {seconds:g} s and was ended.")
    return code, kept


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leave no process behind, whatever happens within."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
