"""A runtime in another process: starts it, speaks to it over pipes, and believes nothing unchecked."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.artifact import IoSpec
from edgeattn.errors import ModelError, TargetUnavailable
from edgeattn.targets.base import Outputs

__all__ = ["Worker"]

_LARGEST_HEADER = 1 << 20
# OpenVINO compiles a network with attention for minutes under emulation, longer still on a busy machine.
_START_SECONDS = 900.0
_ANSWER_SECONDS = 300.0


class Worker:
    """One process of `edgeattn.targets._arm64_worker`, or of anything else that speaks its protocol.

    Args:
        command: The argument list that starts it.
        name: What is open, for messages.

    Raises:
        TargetUnavailable: If it does not start.
        ModelError: If it cannot open the model.
    """

    def __init__(self, command: Sequence[str], name: str) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            self._process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
        except OSError as exc:
            self._errors.close()
            raise TargetUnavailable(f"{command[0]} does not start: {exc.strerror}.") from exc
        try:
            self.opened: Mapping[str, Any] = self._answer(_START_SECONDS)
        except BaseException:
            self.close()
            raise

    def infer(self, feeds: Mapping[str, NDArray[np.float32]], outputs: Sequence[IoSpec]) -> Outputs:
        """Run once.

        Args:
            feeds: float32 arrays by name.
            outputs: What must come back: names, shapes, element type.

        Raises:
            ModelError: If the runtime fails, or gives anything else.
        """
        header = json.dumps({"inputs": {name: list(array.shape) for name, array in feeds.items()}}).encode()
        stdin = self._process.stdin
        try:
            if stdin is None:
                raise self._ended()
            stdin.write(struct.pack("<Q", len(header)) + header)
            for array in feeds.values():
                stdin.write(np.ascontiguousarray(array, dtype="<f4").tobytes())
            stdin.flush()
        except BrokenPipeError:
            # It ended, perhaps after it said why: reading tells. What is buffered has no reader any more.
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # type: ignore[union-attr]
        except (OSError, ValueError) as exc:
            raise self._ended() from exc
        answer = self._answer(_ANSWER_SECONDS)
        shapes = answer.get("outputs")
        if not isinstance(shapes, dict):
            raise self._odd(f"{str(answer)[:200]}")
        by_name = {spec.name: spec for spec in outputs}
        if set(shapes) != set(by_name) or any(
            list(by_name[name].shape) != shape for name, shape in shapes.items()
        ):
            raise self._odd(f"outputs {str(shapes)[:200]}, expected {[(s.name, s.shape) for s in outputs]}")
        values: Outputs = {}
        for name, shape in shapes.items():
            data = self._read(int(np.prod(shape)) * 4, time.monotonic() + _ANSWER_SECONDS)
            values[name] = np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(shape)
        return values

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _answer(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        (length,) = struct.unpack("<Q", self._read(8, deadline))
        if not 0 < length <= _LARGEST_HEADER:
            raise self._odd(f"a header of {length} bytes")
        try:
            value = json.loads(self._read(length, deadline))
        except ValueError as exc:
            raise self._odd("a header that is not JSON") from exc
        if not isinstance(value, dict):
            raise self._odd("a header that is no object")
        if "error" in value:
            text = " ".join(str(value["error"]).split())[:500]
            raise ModelError(f"{self._name}: the emulated runtime failed: {text}.")
        return value

    def _read(self, size: int, deadline: float) -> bytes:
        """Read exactly `size` bytes, or give up at `deadline`."""
        stdout = self._process.stdout
        if stdout is None or stdout.closed:
            raise self._ended()
        descriptor, parts = stdout.fileno(), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while len(parts) < size:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self._process.kill()
                    raise TargetUnavailable(f"{self._name}: the emulated runtime did not answer in time.")
                # Past Python's buffer, which select knows nothing of.
                data = os.read(descriptor, min(1 << 20, size - len(parts)))
                if not data:
                    raise self._ended()
                parts += data
        return bytes(parts)

    def _ended(self) -> TargetUnavailable:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        said = ""
        with contextlib.suppress(OSError, ValueError):
            self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(0, self._errors.tell() - 500))
            said = " ".join(self._errors.read().decode(errors="replace").split())
        return TargetUnavailable(
            f"{self._name}: the emulated process ended (exit code {self._process.poll()}): {said or 'no message'}."
        )

    def _odd(self, what: str) -> ModelError:
        return ModelError(f"{self._name}: the emulated process answered with {what}.")
