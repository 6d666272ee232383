"""Real aarch64 builds of ONNX Runtime and OpenVINO, run by emulation: what ARM will answer, not how fast.

The same Debian packages and wheels that a Raspberry Pi would install run under QEMU's user-mode emulation, so
the integer kernels are ARM's own. ``edgeattn setup arm64`` gets them. How long anything takes under emulation
says nothing about a device, so latency is refused.

Left to itself, OpenVINO 2026.4.1 gives ARM's INT8 kernels few layers: a convolution whose input has a zero point, or
that a ReLU6 follows, is computed in float16 instead, by a reference implementation and with weights rounded to
float16 (18 of MobileNetV2's 52; two run in INT8, the others in float32). So its low-precision transformations are off
here unless asked for: every layer is then the quantized graph's own arithmetic in float32, which on exact grids
(`edgeattn.quant.exact_grids`) gives the integers of x86.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeattn.artifact import OnnxArtifact, write_bytes
from edgeattn.errors import ModelError, RecipeError, TargetUnavailable, close_matches_hint
from edgeattn.targets import _arm64_worker
from edgeattn.targets._common import RuntimeTarget, check_feeds, check_threads, closed_error
from edgeattn.targets._worker import Worker
from edgeattn.targets.arm64_setup import Arm64Environment, find_environment, why_not_set_up
from edgeattn.targets.base import Availability, Engine, Feeds, LayerTime, Outputs, Session, TimingPlan

__all__ = ["Arm64"]

# The lists of lowering passes, and the packages.
_RUNTIMES = {"ort": ("ort-portable", "onnxruntime"), "openvino": ("openvino-cpu", "openvino")}
_PROFILES = ("u8", "s8")


class Arm64(RuntimeTarget):
    """An ARM64 CPU, emulated.

    Args:
        runtime: ``"ort"`` or ``"openvino"``.
        profile: The QDQ profile it is fed: ``"u8"`` or ``"s8"``.
        cpu: What QEMU emulates. It decides which kernels the runtimes take: ``cortex-a72`` has no dot product,
            ``neoverse-n1`` and ``cortex-a76`` have, ``max`` also has matrix multiplication of int8.
        low_precision: Whether OpenVINO runs its low-precision transformations, as it does by default on a device.

    Raises:
        RecipeError: If an option has another value.
    """

    name = "arm64"
    emulated = True

    def __init__(
        self,
        *,
        runtime: str = "ort",
        profile: str = "u8",
        cpu: str = "neoverse-n1",
        low_precision: bool = False,
    ) -> None:
        for option, value, known in (("runtime", runtime, _RUNTIMES), ("profile", profile, _PROFILES)):
            if value not in known:
                hint = close_matches_hint(str(value), known)
                raise RecipeError(f"Target arm64: {option} is {value!r}. {hint}")
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", cpu):
            raise RecipeError(f"Target arm64: cpu is {cpu!r}; expected a name such as neoverse-n1.")
        if low_precision and runtime != "openvino":
            raise RecipeError(f"Target arm64: low_precision is OpenVINO's; runtime is {runtime!r}.")
        self.profile = profile
        self._runtime, self._cpu, self._low_precision = runtime, cpu, low_precision

    @property
    def adds_float_biases(self) -> bool:
        """Whether the runtime adds biases in float, not as whole accumulator steps."""
        return self._runtime == "openvino"

    def probe(self) -> Availability:
        """Say whether the emulator and the runtimes are there. Never starts them."""
        reason, install = why_not_set_up()
        if reason:
            return Availability(False, False, f"{reason[0].upper()}{reason[1:]}.", install)
        try:
            environment = find_environment()
        except Exception as exc:
            return Availability(False, False, str(exc), "edgeattn setup arm64 --again")
        return Availability(True, True, version=self._version(environment))

    def lower(self, artifact: OnnxArtifact, workdir: Path) -> OnnxArtifact:
        """Return the artifact as the same runtime gets it on a device."""
        from edgeattn.lower import lower_artifact

        self._check_artifact(artifact)
        lowered: OnnxArtifact = lower_artifact(artifact, target=_RUNTIMES[self._runtime][0], workdir=workdir)
        return lowered

    def build(self, artifact: OnnxArtifact, workdir: Path) -> Engine:
        """Copy the lowered model into `workdir`, once the emulated runtime has opened it.

        Raises:
            TargetUnavailable: If nothing can be emulated here.
            ModelError: If the runtime cannot open the model.
            ArtifactError: If the model's file changed, or the engine cannot be written.
        """
        environment = find_environment()
        self._check_artifact(artifact)
        with self._worker(environment, artifact.path, 1) as worker:
            opened = dict(worker.opened)
        path = write_bytes(self._engine_path(artifact, workdir, ".onnx"), artifact.path.read_bytes())
        return self._engine(artifact, path, {**self._describe(environment, opened), "engine": self._runtime})

    @contextlib.contextmanager
    def open(self, engine: Engine, *, threads: int = 1) -> Iterator[Session]:
        """Start an emulated process with the engine after checking its hash.

        Args:
            engine: An engine of this target.
            threads: Of one inference.

        Raises:
            TargetUnavailable: If nothing can be emulated here.
            ArtifactError: If the engine changed since it was built.
            ModelError: If it is another target's engine, or the runtime cannot open it.
        """
        environment = find_environment()
        self._check_engine(engine, threads)
        if engine.details.get("engine") != self._runtime:
            raise ModelError(
                f"Engine {engine.path.name} was built for {engine.details.get('engine')!r} on ARM64, not for "
                f"{self._runtime!r}. Open it with runtime={engine.details.get('engine')!r}."
            )
        with self._worker(environment, engine.path, threads) as worker:
            properties = {**self._describe(environment, dict(worker.opened)), "threads": threads}
            session = _Arm64Session(worker, engine, threads, properties)
            try:
                yield session
            finally:
                session.close()

    @contextlib.contextmanager
    def _worker(self, environment: Arm64Environment, model: Path, threads: int) -> Iterator[Worker]:
        engine = f"{self._runtime}-int8" if self._low_precision else self._runtime
        arguments = (str(Path(_arm64_worker.__file__)), engine, str(model.absolute()), str(threads))
        worker = Worker(environment.command(*arguments, cpu=self._cpu), model.name)
        try:
            yield worker
        finally:
            worker.close()

    def _version(self, environment: Arm64Environment) -> str:
        package = _RUNTIMES[self._runtime][1]
        return f"{package} {environment.versions.get(package, '?')}"

    def _describe(self, environment: Arm64Environment, opened: dict[str, Any]) -> dict[str, Any]:
        own = {"low_precision": self._low_precision} if self._runtime == "openvino" else {}
        return {
            **own,
            "runtime": str(opened.get("runtime", ""))[:100],
            "machine": str(opened.get("machine", ""))[:32],
            "emulator": environment.emulator.name,
            "cpu": self._cpu,
            "emulated": True,
        }


class _Arm64Session:
    """An engine in an emulated process."""

    def __init__(self, worker: Worker, engine: Engine, threads: int, properties: dict[str, Any]) -> None:
        self._worker: Worker | None = worker
        self._engine = engine
        self._threads = threads
        self.properties = properties

    def close(self) -> None:
        """Let go of the process, which its owner ends."""
        self._worker = None

    def infer(self, feeds: Feeds) -> Outputs:
        """Run once and return every output by name."""
        if self._worker is None:
            raise closed_error(self._engine)
        return self._worker.infer(check_feeds(self._engine, feeds), self._engine.outputs)

    def time(self, feeds: Feeds, plan: TimingPlan) -> Sequence[int]:
        """Refuse: an emulated ARM's time says nothing about a real one.

        Raises:
            TargetUnavailable: Always, once the request itself is valid.
        """
        check_threads(self._threads, plan)
        if self._worker is None:
            raise closed_error(self._engine)
        check_feeds(self._engine, feeds)
        raise TargetUnavailable(
            "The target arm64 is emulated: how long it takes says nothing about a device. "
            "Measure latency on one, for example with the target jetson-ssh."
        )

    def layer_times(self, feeds: Feeds, runs: int = 50) -> Sequence[LayerTime]:
        """Return nothing, for the same reason."""
        if self._worker is None:
            raise closed_error(self._engine)
        check_feeds(self._engine, feeds)
        return []
