"""Ends every command the same way: a short message on standard error and the error's exit code."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from edgeattn.errors import EdgeAttnError

__all__ = ["handle_errors", "plain_text", "set_debug"]

P = ParamSpec("P")
R = TypeVar("R")

_INTERRUPTED = 130
_RESUMED = frozenset({"catalogue", "quantize", "run", "study"})
"""Commands that go on from what an earlier call finished."""
_debug = False


def set_debug(enabled: bool) -> None:
    """Choose whether errors come with their traceback."""
    global _debug  # one process runs one command
    _debug = enabled


def plain_text(text: str) -> str:
    """Make control characters visible: a message may quote a file or a device."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def handle_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what a command raises into a message and an exit code."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            result = command(*args, **kwargs)
            sys.stdout.flush()  # so that a closed pipe is noticed here
            return result
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            resumes = (
                "; run the same command again: what it finished is kept"
                if command.__name__ in _RESUMED
                else ""
            )
            code = _complain(f"interrupted{resumes}", _INTERRUPTED)
        except BrokenPipeError:
            # The reader (head, say) has what it wanted. Python would complain again at its exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        except EdgeAttnError as exc:
            code = _complain(f"error: {exc}", exc.exit_code)
        except MemoryError:
            code = _complain(
                "error: out of memory. Use a smaller batch_size or measure.limit, or close other programs.", 1
            )
        except Exception as exc:
            code = _complain(
                f"error: unexpected {type(exc).__name__}: {exc}\n"
                "This is a defect of edgeattn. `edgeattn --debug ...` shows where; please report it.",
                1,
            )
        raise typer.Exit(code)

    return wrapper


def _complain(message: str, code: int) -> int:
    if _debug:
        traceback.print_exc()
    sys.stderr.write(plain_text(message) + "\n")
    sys.stderr.flush()
    return code
