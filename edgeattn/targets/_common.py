"""What every target shares: its runtime on demand, checked inputs, one timing loop, engine files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeattn.artifact import OnnxArtifact, sha256_of_file
from edgeattn.errors import EdgeAttnError, MissingExtraError, ModelError, RecipeError, TargetUnavailable
from edgeattn.extras import EXTRA_OF_PACKAGE, require
from edgeattn.targets.base import Engine, Feeds, TimingPlan
from edgeattn.targets.engine_files import verify_engine

if TYPE_CHECKING:
    from edgeattn.lower.base import LoweringPass

__all__ = [
    "RuntimeTarget",
    "check_feeds",
    "check_threads",
    "clock_runs",
    "closed_error",
    "install_command",
    "one_line",
]


def install_command(package: str) -> str:
    """Return the command that installs the extra behind an import name."""
    extra = EXTRA_OF_PACKAGE.get(package)
    return f"pip install 'edgeattn[{extra}]'" if extra else f"pip install {package}"


def one_line(exc: BaseException, limit: int = 300) -> str:
    """Return an exception's text on one line: runtimes write paragraphs."""
    text = " ".join(str(exc).split()) or type(exc).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check_feeds(engine: Engine, feeds: Feeds) -> dict[str, NDArray[np.float32]]:
    """Return the feeds as contiguous arrays, in the order of the engine's inputs.

    Raises:
        ModelError: If a name, shape or element type is not the engine's.
    """
    expected = {spec.name: spec for spec in engine.inputs}
    if set(feeds) != set(expected):
        raise ModelError(
            f"Engine {engine.path.name} takes the inputs {sorted(expected)}, got {sorted(feeds)}. "
            "Feed every input once, under its name."
        )
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, spec in expected.items():
        value = feeds[name]
        if not isinstance(value, np.ndarray):
            raise ModelError(f"Input {name!r} is a {type(value).__name__}; expected a NumPy array.")
        if value.dtype != np.dtype(spec.dtype):
            raise ModelError(
                f"Input {name!r} has element type {value.dtype}, the engine takes {spec.dtype}. "
                f"Convert it with .astype({spec.dtype!r})."
            )
        if tuple(value.shape) != spec.shape:
            raise ModelError(
                f"Input {name!r} has shape {tuple(value.shape)}, the engine was built for {spec.shape}. "
                "Resize or split the batch, or build the engine for this shape."
            )
        arrays[name] = np.ascontiguousarray(value)
    return arrays


def check_threads(opened: int, plan: TimingPlan) -> None:
    """Refuse to time an engine with another number of threads than it was opened with."""
    if plan.threads != opened:
        raise RecipeError(
            f"The timing plan asks for {plan.threads} threads, the engine was opened with {opened}. "
            f"Open it with threads={plan.threads}."
        )


def closed_error(engine: Engine) -> ModelError:
    """Return the error for using a session after its ``with`` block."""
    return ModelError(f"Engine {engine.path.name} is closed. Use it inside `with target.open(engine)`.")


def clock_runs(run: Callable[[], object], plan: TimingPlan) -> list[int]:
    """Return the nanoseconds of each counted call, as `plan` says.

    The clock is read twice a call and nothing else happens between the two readings.
    """
    clock = time.perf_counter_ns
    for _ in range(plan.warmup_runs):
        run()
    samples: list[int] = []
    deadline = clock() + int(plan.min_seconds * 1e9)
    while True:
        start = clock()
        run()
        end = clock()
        samples.append(end - start)
        if len(samples) >= plan.min_runs or end >= deadline:
            return samples


class RuntimeTarget:
    """Base of the targets in this package.

    Subclasses set the class attributes and write ``_version``, ``build`` and ``open``.
    """

    name: str
    profile: str
    package: ClassVar[str]
    """Import name of the runtime."""
    accepted_profiles: ClassVar[frozenset[str]] = frozenset({"fp32", "u8", "s8"})
    """Profiles whose numbers this runtime computes right, though maybe not fast."""

    def _load(self) -> ModuleType:
        """Import the runtime.

        Raises:
            TargetUnavailable: If it is absent or broken; the message says how to install it.
        """
        try:
            return require(self.package, purpose=f"the target {self.name}")
        except MissingExtraError as exc:
            raise TargetUnavailable(str(exc)) from exc
        except EdgeAttnError:
            raise
        except Exception as exc:
            # A half-installed runtime fails in its own ways: a missing symbol, a bad shared library.
            raise TargetUnavailable(
                f"The target {self.name} needs the package {self.package!r}, which is installed but does "
                f"not load ({one_line(exc)}). Reinstall it with: {install_command(self.package)}"
            ) from exc

    def lower(self, artifact: OnnxArtifact, workdir: Path) -> OnnxArtifact:
        """Return the artifact in this target's fastest spelling, numbers unchanged.

        Raises:
            ModelError: If the artifact's profile is not one that this target computes right.
            ArtifactError: If the file changed since it was written.
        """
        from edgeattn.lower import lower_artifact

        self._check_artifact(artifact)
        lowered: OnnxArtifact = lower_artifact(
            artifact, target=self.name, workdir=workdir, more=self._more_passes()
        )
        return lowered

    def _more_passes(self) -> Sequence[LoweringPass]:
        """Return lowering passes behind the target's own, for the device that it is set to."""
        return ()

    def _check_artifact(self, artifact: OnnxArtifact) -> None:
        if artifact.profile not in self.accepted_profiles:
            raise ModelError(
                f"Target {self.name} cannot take {artifact.path.name}: its profile is {artifact.profile!r}, "
                f"expected one of {sorted(self.accepted_profiles)}. Export it with profile={self.profile!r}."
            )
        artifact.verify()

    def _check_engine(self, engine: Engine, threads: int) -> None:
        if type(threads) is not int or threads < 1:
            raise RecipeError(f"threads is {threads!r}; expected a whole number of at least 1.")
        if engine.target != self.name:
            raise ModelError(
                f"Engine {engine.path.name} was built for {engine.target}, not for {self.name}. "
                "An engine is valid only on its own target: build one for this target."
            )
        verify_engine(engine)

    def _engine_path(self, artifact: OnnxArtifact, workdir: Path, suffix: str) -> Path:
        """Return where the engine goes: ``<model>.<target>.<precision><suffix>`` in `workdir`."""
        stem = artifact.path.name.removesuffix(".onnx").removesuffix(f".{self.name}")
        return workdir / f"{stem}.{self.name}.{_precision(artifact)}{suffix}"

    def _engine(self, artifact: OnnxArtifact, path: Path, details: Mapping[str, Any]) -> Engine:
        """Describe a finished engine file."""
        side_files = [path.with_name(name) for name in details.get("side_files", {})]
        return Engine(
            target=self.name,
            path=path,
            sha256=sha256_of_file(path),
            size_bytes=sum(file.stat().st_size for file in (path, *side_files)),
            inputs=artifact.inputs,
            outputs=artifact.outputs,
            precision=_precision(artifact),
            details={"profile": artifact.profile, "source_sha256": artifact.sha256, **details},
        )


def _precision(artifact: OnnxArtifact) -> str:
    return "fp32" if artifact.profile == "fp32" else "int8"
