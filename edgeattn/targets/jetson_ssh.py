"""A Jetson, or any machine with the kit's needs, behind ssh: built, run and timed there.

What goes there is the Jetson kit's program with the lowered model and a job; what comes back is checked. The
engine is built on the device, brought back, and opened only there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.artifact import OnnxArtifact, sha256_of_file, write_bytes
from edgeattn.errors import EdgeAttnError, ModelError, RecipeError, TargetUnavailable, close_matches_hint
from edgeattn.progress import Progress
from edgeattn.targets._common import RuntimeTarget, check_feeds, check_threads, closed_error
from edgeattn.targets._device_jobs import DeviceJobs
from edgeattn.targets._device_result import DeviceResult
from edgeattn.targets._transport import SshTransport, Transport, check_word
from edgeattn.targets._trt import check_signed_activations
from edgeattn.targets.base import Availability, Engine, Feeds, LayerTime, Outputs, Session, TimingPlan

__all__ = ["JetsonSsh"]

_RUNTIMES = ("auto", "tensorrt", "trtexec", "ort")
_SET_HOST = "export EDGEATTN_JETSON_HOST=user@host"
# Of one job: some hundred images at 224.
_FEEDS_BYTES = 128 << 20


class JetsonSsh(RuntimeTarget):
    """A Jetson behind ssh.

    Args:
        host: Name, address, ``user@host`` or an alias of ``~/.ssh/config``; None: ``EDGEATTN_JETSON_HOST``.
        config: Another ssh configuration; None: ``EDGEATTN_JETSON_SSH_CONFIG``, or else the user's.
        python: The interpreter there; None: ``EDGEATTN_JETSON_PYTHON``, or else ``python3``.
        runtime: ``"auto"``, ``"tensorrt"``, ``"trtexec"`` or ``"ort"``; None: ``EDGEATTN_JETSON_RUNTIME``, or
            else ``auto``: the first that works there.
        folder: Where kits go, below the home folder there; None: ``EDGEATTN_JETSON_FOLDER``, or else
            ``.edgeattn``.
        patience_seconds: How long a lost device is waited for.
        optimization_level: How hard TensorRT's builder searches, 0 to 5; None: its default.
        tf32: Whether what stays float32 may be computed in TF32.
        transport: Another way to the device.
        progress: Hears what the device says.

    Raises:
        RecipeError: If an option has a value that is not valid.
    """

    name = "jetson-ssh"
    profile = "s8"
    accepted_profiles = frozenset({"fp32", "s8"})

    def __init__(
        self,
        *,
        host: str | None = None,
        config: Path | str | None = None,
        python: str | None = None,
        runtime: str | None = None,
        folder: str | None = None,
        patience_seconds: float = 300.0,
        optimization_level: int | None = None,
        tf32: bool = True,
        transport: Transport | None = None,
        progress: Progress | None = None,
    ) -> None:
        host = host or os.environ.get("EDGEATTN_JETSON_HOST") or None
        config = config or os.environ.get("EDGEATTN_JETSON_SSH_CONFIG") or None
        self._python = check_word(python or os.environ.get("EDGEATTN_JETSON_PYTHON") or "python3")
        self._runtime = runtime or os.environ.get("EDGEATTN_JETSON_RUNTIME") or "auto"
        if self._runtime not in _RUNTIMES:
            raise RecipeError(
                f"Target {self.name}: runtime is {self._runtime!r}. {close_matches_hint(self._runtime, _RUNTIMES)}"
            )
        if optimization_level is not None and optimization_level not in range(6):
            raise RecipeError(f"optimization_level is {optimization_level!r}; expected 0 to 5.")
        self._options = {"optimization_level": optimization_level, "tf32": bool(tf32)}
        self._transport = transport
        if transport is None and host is not None:
            self._transport = SshTransport(host, config=Path(config) if config is not None else None)
        self._where = host or ("this machine" if transport is not None else "")
        self._folder = check_word(folder or os.environ.get("EDGEATTN_JETSON_FOLDER") or ".edgeattn")
        self._patience = patience_seconds
        self._progress = progress
        self._probed: Availability | None = None

    @property
    def device(self) -> str:
        """The device's name and the runtime there, or an empty string where no device is named."""
        return f"{self._where} {self._runtime}" if self._where else ""

    def probe(self) -> Availability:
        """Say whether a device is named and answers; asked once. Never raises."""
        if self._transport is None:
            return Availability(False, False, "No device is named.", _SET_HOST)
        if self._probed is None:
            self._probed = self._ask(self._transport)
        return self._probed

    def build(self, artifact: OnnxArtifact, workdir: Path) -> Engine:
        """Build an engine on the device and bring it back to `workdir`, with the model that it came from.

        Raises:
            TargetUnavailable: If no device is named, it cannot be reached, or it lacks something.
            ModelError: If the graph holds unsigned activations, or the device's runtime refuses it.
            ArtifactError: If the model's file changed, or the engine cannot be written.
        """
        jobs = self._jobs()
        self._check_artifact(artifact)
        check_signed_activations(artifact.path)
        job = self._job(artifact.sha256, artifact.inputs, artifact.outputs, 1)
        result, _ = jobs.run(job, {_model_name(artifact.sha256): artifact.path})
        if result.engine is None or result.runtime is None:
            raise ModelError(f"The device {self._where} built no engine, and named no error.")
        plan = jobs.fetch(result.engine.file, result.engine.sha256, result.engine.size_bytes)
        path = self._engine_path(artifact, workdir, ".plan")
        source = path.with_suffix(".onnx")
        write_bytes(source, artifact.path.read_bytes())
        write_bytes(path, plan)
        details = {
            **self._describe(result),
            "build_seconds": result.engine.seconds,
            "side_files": {source.name: sha256_of_file(source)},
        }
        return self._engine(artifact, path, details)

    @contextlib.contextmanager
    def open(self, engine: Engine, *, threads: int = 1) -> Iterator[Session]:
        """Open an engine on the device after checking its hash.

        Args:
            engine: An engine of this target.
            threads: Of ONNX Runtime; recorded only on a GPU.

        Raises:
            TargetUnavailable: If no device is named.
            ArtifactError: If the engine changed since it was built.
            ModelError: If it is another target's engine.
        """
        self._check_engine(engine, threads)
        session = _DeviceSession(self, self._jobs(), engine, threads)
        try:
            yield session
        finally:
            session.close()

    def _ask(self, transport: Transport) -> Availability:
        try:
            code, said = transport.run([self._python, "-V"], seconds=30.0)
        except EdgeAttnError as exc:
            return Availability(False, False, str(exc), _SET_HOST)
        if code:
            return Availability(False, False, f"{self._where} has no {self._python}.", _SET_HOST)
        return Availability(True, True, version=" ".join(said.split())[-40:] or self._python)

    def _jobs(self) -> DeviceJobs:
        if self._transport is None:
            raise TargetUnavailable(f"Target {self.name}: no device is named. {_SET_HOST}")
        return DeviceJobs(
            self._transport,
            folder=self._folder,
            python=self._python,
            patience_seconds=self._patience,
            progress=self._progress,
        )

    def _job(
        self, sha256: str, inputs: Sequence[Any], outputs: Sequence[Any], threads: int
    ) -> dict[str, Any]:
        if len(inputs) != 1 or len(outputs) != 1:
            raise ModelError(f"Target {self.name} takes models with one input and one output.")
        tensors = {
            key: {"name": spec.name, "shape": list(spec.shape)}
            for key, spec in (("input", inputs[0]), ("output", outputs[0]))
        }
        return {
            "schema_version": 1,
            "runtime": self._runtime,
            "model": {"file": _model_name(sha256), "kit": True, "sha256": sha256, **tensors},
            "options": {**self._options, "threads": threads},
        }

    def _describe(self, result: DeviceResult) -> dict[str, Any]:
        runtime = result.runtime
        return {
            "runtime": f"{runtime.name} {runtime.version}" if runtime else "",
            "device": dict(result.machine),
            "support": dict(result.support),
            **self._options,
        }


class _DeviceSession:
    """An engine on the device; each call is one job there."""

    def __init__(self, target: JetsonSsh, jobs: DeviceJobs, engine: Engine, threads: int) -> None:
        self._target, self._engine, self._threads = target, engine, threads
        self._open_jobs: DeviceJobs | None = jobs
        source = engine.path.with_suffix(".onnx")
        self._files = {_model_name(sha256_of_file(source)): source}
        self._job = target._job(sha256_of_file(source), engine.inputs, engine.outputs, threads)
        self._job["engine_sha256"] = engine.sha256
        self._turn = 0
        self.properties: dict[str, Any] = {"threads": threads, "clock": "on the device"}

    def close(self) -> None:
        """Let go of the device."""
        self._open_jobs = None

    def infer(self, feeds: Feeds) -> Outputs:
        """Run once and return every output by name."""
        check_feeds(self._engine, feeds)
        return self.infer_many(feeds)

    def infer_many(self, feeds: Feeds) -> Outputs:
        """Run a stack of inputs in few jobs.

        Args:
            feeds: The engine's input by name, (N, ...) where the engine's own first dimension is 1.

        Returns:
            The output by name, (N, ...).
        """
        jobs, spec = self._jobs, self._engine.inputs[0]
        if set(feeds) != {spec.name}:
            check_feeds(self._engine, feeds)
        stack = feeds[spec.name]
        if np.ndim(stack) != len(spec.shape) or len(stack) == 0:
            # Refused in the words that every target has for it.
            check_feeds(self._engine, feeds)
        check_feeds(self._engine, {spec.name: stack[:1]})
        at_a_time = max(1, _FEEDS_BYTES // stack[:1].nbytes)
        rows: list[NDArray[np.float32]] = []
        for start in range(0, len(stack), at_a_time):
            _, outputs = jobs.run(self._job, self._files, stack[start : start + at_a_time])
            if outputs is None:
                raise ModelError("The device gave no outputs.")
            rows.append(outputs)
        return {self._engine.outputs[0].name: np.concatenate(rows)}

    def time(self, feeds: Feeds, plan: TimingPlan) -> Sequence[int]:
        """Return nanoseconds of each counted inference, clocked on the device."""
        check_threads(self._threads, plan)
        jobs = self._jobs
        check_feeds(self._engine, feeds)
        timing = {
            "warmup_runs": plan.warmup_runs,
            "min_runs": plan.min_runs,
            "min_seconds": plan.min_seconds,
        }
        # A job that was run is not repeated, so each block has a number of its own.
        self._turn += 1
        turn = f"{os.getpid()}-{self._turn}-{os.urandom(4).hex()}"
        result, _ = jobs.run({**self._job, "timing": timing, "turn": turn}, self._files)
        if result.timing is None:
            raise ModelError("The device measured nothing, and named no error.")
        self.properties |= {
            **self._target._describe(result),
            "clock": result.timing.clock,
            "state_before": dict(result.timing.state_before),
            "state_after": dict(result.timing.state_after),
        }
        return result.timing.samples_ns

    def layer_times(self, feeds: Feeds, runs: int = 50) -> Sequence[LayerTime]:
        """Return mean time by kernel, where the runtime there can tell."""
        jobs = self._jobs
        check_feeds(self._engine, feeds)
        result, _ = jobs.run({**self._job, "layers": runs}, self._files)
        return [LayerTime(layer.name, "", "", layer.latency_us) for layer in result.layers]

    @property
    def _jobs(self) -> DeviceJobs:
        if self._open_jobs is None:
            raise closed_error(self._engine)
        return self._open_jobs


def _model_name(sha256: str) -> str:
    return f"models/{sha256[:24]}.onnx"
