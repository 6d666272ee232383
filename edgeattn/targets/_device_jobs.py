"""Jobs on a device: send the kit and a job, start it, follow it, bring the result back.

The job runs there on its own, so a dropped link costs nothing: the next connection reads the log from where it
stood. A job that is gone without a result (the device restarted, or it was killed) is started again and goes on
behind its last finished step. Nothing here knows which transport it is.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.artifact import sha256_of_bytes, sha256_of_file
from edgeattn.errors import ArtifactError, ModelError, ParityError, TargetUnavailable
from edgeattn.progress import Progress, SilentProgress
from edgeattn.targets import jetson_support
from edgeattn.targets._device_result import LARGEST_RESULT_BYTES, DeviceResult, parse_result
from edgeattn.targets._processes import LinkDropped
from edgeattn.targets._transport import Transport

__all__ = ["DeviceJobs", "kit_program"]

logger = logging.getLogger(__name__)

_GONE = 75
_RESTARTS = 3
# A builder may say nothing for many minutes.
_SILENCE_SECONDS = 3600.0
# A connection that lasted longer was one.
_CONNECTED_SECONDS = 60.0
_STARTED = "@started"
_MARKS = (_STARTED, "@running", "@finished")
_PROGRESS = re.compile(r"\[(\d{1,3})/(\d{1,3})\] (.{1,300})")
_PACKAGE = Path(__file__).resolve().parents[1]
_LARGEST_OUTPUTS_BYTES = 1 << 30


def kit_program() -> dict[str, Path]:
    """Return the Jetson kit's program: name -> file.

    Raises:
        ArtifactError: If it is neither in the checkout nor in the installed package.
    """
    for folder in (_PACKAGE.parent / "deploy" / "jetson", _PACKAGE / "_deploy" / "jetson"):
        if (folder / "run.py").is_file():
            files = {path.name: path for path in sorted(folder.glob("*.py"))}
            return {**files, "jetson_support.py": Path(jetson_support.__file__)}
    raise ArtifactError("The Jetson kit's program is missing. Install edgeattn again.")


class DeviceJobs:
    """The jobs of one device.

    Args:
        transport: The way there.
        folder: Where kits go, below the user's home.
        python: The interpreter there.
        patience_seconds: How long a lost device is waited for: one that restarts takes a minute or two.
        progress: Hears what the device says.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        folder: str = ".edgeattn",
        python: str = "python3",
        patience_seconds: float = 300.0,
        progress: Progress | None = None,
    ) -> None:
        self._transport = transport
        self._python = python
        self._patience = patience_seconds
        self._progress = progress or SilentProgress()
        program = kit_program()
        digest = hashlib.sha256()
        for name, path in sorted(program.items()):
            digest.update(f"{name} {sha256_of_file(path)}\n".encode())
        self._program = program
        self._there: set[str] = set()
        self.folder = f"{folder}/{digest.hexdigest()[:16]}"

    def run(
        self, job: Mapping[str, Any], files: Mapping[str, Path], feeds: NDArray[np.float32] | None = None
    ) -> tuple[DeviceResult, NDArray[np.float32] | None]:
        """Run one job, whatever the link does meanwhile.

        Args:
            job: ``job.json`` without its id.
            files: What it names below the kit's folder, by that name.
            feeds: (N, ...) inputs that the job runs, or None.

        Returns:
            The checked result, and the outputs (N, ...) if there were feeds.

        Raises:
            TargetUnavailable: If the device cannot be reached, lacks something, or answers nonsense.
            ModelError: If the runtime there refuses the model.
            ParityError: If the outputs are not the expected ones.
        """
        with tempfile.TemporaryDirectory(prefix="edgeattn-") as scratch:
            job = dict(job)
            sent: dict[str, Path] = {}
            if feeds is not None:
                stream = io.BytesIO()
                np.save(stream, np.ascontiguousarray(feeds), allow_pickle=False)
                sent["feeds.npy"] = Path(scratch) / "feeds.npy"
                sent["feeds.npy"].write_bytes(stream.getvalue())
                job["feeds"] = {"file": "feeds.npy", "sha256": sha256_of_bytes(stream.getvalue())}
            job["id"] = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:24]
            sent["job.json"] = Path(scratch) / "job.json"
            sent["job.json"].write_text(json.dumps(job), encoding="utf-8")
            home = f"{self.folder}/jobs/{job['id']}"
            self._patiently(lambda: self._send(files, sent, home))
            code = self._finish(home)
            result = self._result(home, str(job["id"]), code, files)
            outputs = None
            if feeds is not None and result.outputs is not None:
                outputs = self._outputs(home, result, feeds, job["model"]["output"]["shape"])
            self._forget(home)
        return result, outputs

    def fetch(self, name: str, sha256: str, size_bytes: int) -> bytes:
        """Bring back a file of the kit's folder, checked.

        Raises:
            TargetUnavailable: If it is not what was announced.
        """
        data: bytes = self._patiently(lambda: self._transport.get(f"{self.folder}/{name}", size_bytes))
        if sha256_of_bytes(data) != sha256:
            raise TargetUnavailable(f"{name} came back changed: its SHA-256 is not the announced one.")
        return data

    def _send(self, files: Mapping[str, Path], sent: Mapping[str, Path], home: str) -> None:
        # Files arrive in this order, and what is started or vouches for the others comes last.
        program = {name: self._program[name] for name in sorted(self._program, key=lambda n: n == "run.py")}
        for wanted, sign in ((program, "run.py"), *(({name: path}, name) for name, path in files.items())):
            if sign not in self._there and not self._transport.exists(f"{self.folder}/{sign}"):
                self._transport.put(wanted, self.folder)
            self._there.add(sign)
        self._transport.put(sent, home)

    def _finish(self, home: str) -> int:
        """Start the job, or find it running, and follow it to its end; return its exit code."""
        position, starts = 0, 0
        deadline = time.monotonic() + self._patience
        while True:
            heard = 0

            def hear(line: str, size: int) -> None:
                nonlocal heard, starts
                if line in _MARKS:
                    # Said by the command that follows, and no part of the log that is followed.
                    starts += line == _STARTED
                    if line == _STARTED and starts > 1:
                        self._progress.note(
                            "the job was gone, as after a restart of the device: starting it again"
                        )
                    return
                heard += size
                self._hear(line)

            begun = time.monotonic()
            command = self._command(home, "--detach", "--follow", "--offset", str(position))
            try:
                code, said = self._transport.run(command, on_line=hear, seconds=_SILENCE_SECONDS)
            except LinkDropped as exc:
                position += heard
                # Patience is about a device that cannot be reached, not about a long job.
                if heard or time.monotonic() - begun > _CONNECTED_SECONDS:
                    deadline = time.monotonic() + self._patience
                if time.monotonic() > deadline:
                    raise
                self._progress.note(f"{exc} Trying again.")
                time.sleep(min(2.0, self._patience / 10))
                continue
            position += heard
            if starts == 0 and heard and code not in (0, _GONE):
                raise TargetUnavailable(
                    f"The job cannot be started on the device (exit code {code}): {' '.join(said.split())[-400:]}. "
                    "It needs Python 3.10 with NumPy, and room on its disk."
                )
            if code != _GONE:
                return code
            if starts > _RESTARTS:
                raise TargetUnavailable(
                    f"The job on the device ended {starts} times without a result. Its memory may be too small: look "
                    f"at {home}/log there."
                )

    def _command(self, home: str, *options: str) -> list[str]:
        return [self._python, f"{self.folder}/run.py", "--job", f"{home}/job.json", *options]

    def _hear(self, line: str) -> None:
        match = _PROGRESS.match(line)
        if match is not None:
            done, total = int(match[1]), int(match[2])
            self._progress.update("device", min(done, total), max(total, 1))
        if line:
            self._progress.note(line if match is None else match[3])

    def _result(self, home: str, job_id: str, code: int, files: Mapping[str, Path]) -> DeviceResult:
        try:
            data = self._patiently(lambda: self._transport.get(f"{home}/result.json", LARGEST_RESULT_BYTES))
        except LinkDropped:
            raise
        except TargetUnavailable as exc:
            _, said = self._transport.run(["tail", "-c", "600", f"{home}/log"])
            self._forget(home)
            raise TargetUnavailable(
                f"The job ended with exit code {code} and no result: {' '.join(said.split())}"
            ) from exc
        result = parse_result(data, job_id)
        if result.status == "ok" and code == 0:
            return result
        self._forget(home)
        if result.error is None:
            raise TargetUnavailable(f"The job ended with exit code {code}, but its result names no error.")
        if result.error.kind == "job":
            # A file there may be damaged: the next call sends all of them again.
            self._there.clear()
            self._transport.run(["rm", "-f", f"{self.folder}/run.py", *(f"{self.folder}/{n}" for n in files)])
        message = " ".join(result.error.message.split())
        if result.error.kind == "runtime":
            raise ModelError(f"On the device: {message}.")
        if result.error.kind == "mismatch":
            raise ParityError(f"On the device: {message}.")
        raise TargetUnavailable(f"On the device: {message}.")

    def _outputs(
        self, home: str, result: DeviceResult, feeds: NDArray[np.float32], shape: list[int]
    ) -> NDArray[np.float32]:
        described = result.outputs
        expected = [len(feeds), *shape[1:]]
        if described is None or described.shape != expected:
            raise TargetUnavailable(f"The device's outputs are not of shape {expected}.")
        limit = int(np.prod(expected)) * 4 + 1024
        if limit > _LARGEST_OUTPUTS_BYTES:
            raise TargetUnavailable(f"The outputs take {limit} bytes; at most {_LARGEST_OUTPUTS_BYTES}.")
        data = self._patiently(lambda: self._transport.get(f"{home}/outputs.npy", limit))
        if sha256_of_bytes(data) != described.sha256:
            raise TargetUnavailable("The device's outputs came back changed.")
        try:
            values = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError) as exc:
            raise TargetUnavailable("The device's outputs are not an array of numbers.") from exc
        if not isinstance(values, np.ndarray) or values.dtype != np.float32 or list(values.shape) != expected:
            raise TargetUnavailable(f"The device's outputs are not float32 of shape {expected}.")
        return values

    def _forget(self, home: str) -> None:
        """Remove a finished job there: what it held is here now."""
        try:
            self._transport.run(["rm", "-r", "-f", home])
        except TargetUnavailable as exc:
            logger.debug("%s stays on the device: %s", home, exc)

    def _patiently(self, do: Callable[[], Any]) -> Any:
        """Do it again while the link is down, until patience ends."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return do()
            except LinkDropped as exc:
                if time.monotonic() > deadline:
                    raise
                self._progress.note(f"{exc} Trying again.")
                time.sleep(min(2.0, self._patience / 10))
