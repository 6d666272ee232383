"""What a target is: the contract between the pipeline and every runtime.

A target lowers an ONNX artifact to its fastest spelling, builds an engine from it, and opens the
engine as a session. Runtimes are imported inside methods, never at module level, and torch never.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgeattn.artifact import IoSpec, OnnxArtifact
from edgeattn.errors import RecipeError

__all__ = [
    "Availability",
    "Engine",
    "Feeds",
    "LayerTime",
    "Outputs",
    "Session",
    "Target",
    "TimingPlan",
    "device_of",
    "is_emulated",
    "session_properties",
]

Feeds = Mapping[str, NDArray[np.float32]]
Outputs = dict[str, NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class Availability:
    """Whether a target works here.

    Attributes:
        can_build: Engines can be made on this machine.
        can_run: Engines can be opened and timed on this machine.
        reason: Why not, or an empty string.
        install: The command that would help, or an empty string.
        version: The runtime's version, or an empty string.
    """

    can_build: bool
    can_run: bool
    reason: str = ""
    install: str = ""
    version: str = ""


@dataclasses.dataclass(frozen=True)
class TimingPlan:
    """How long a session is timed: warm-up first, then until both minima are met.

    Attributes:
        warmup_runs: Inferences that are not counted.
        min_runs: Counted inferences, at least ...
        min_seconds: ... or this long, whichever comes first.
        threads: Intra-operator threads of the engine.
    """

    warmup_runs: int = 20
    min_runs: int = 1024
    min_seconds: float = 10.0
    threads: int = 1

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: If a number is out of range.
        """
        for field, least in (("warmup_runs", 0), ("min_runs", 1), ("threads", 1)):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise RecipeError(
                    f"TimingPlan.{field} is {value!r}; expected a whole number of at least {least}."
                )
        if not self.min_seconds > 0:
            raise RecipeError(f"TimingPlan.min_seconds is {self.min_seconds!r}; expected more than 0.")

    @classmethod
    def quick(cls, *, threads: int = 1) -> TimingPlan:
        """Return the plan behind ``--quick``: 64 counted inferences, for a first look."""
        return cls(warmup_runs=8, min_runs=64, min_seconds=10.0, threads=threads)


@dataclasses.dataclass(frozen=True)
class LayerTime:
    """Time that one executed layer of an engine took, as its runtime reports it."""

    name: str
    kind: str
    dtype: str
    latency_us: float


@dataclasses.dataclass(frozen=True)
class Engine:
    """What one target built from one artifact; valid only there.

    Attributes:
        target: Name of the target.
        path: The engine's file.
        sha256: Of the file, checked before it is opened.
        size_bytes: Size of the file, with the files that ``details["side_files"]`` names beside it.
        inputs: Graph inputs.
        outputs: Graph outputs.
        precision: ``"int8"`` or ``"fp32"``.
        details: What the build reported (version, layers, data types), for the report.
    """

    target: str
    path: Path
    sha256: str
    size_bytes: int
    inputs: tuple[IoSpec, ...]
    outputs: tuple[IoSpec, ...]
    precision: str
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Session(Protocol):
    """An open engine."""

    def infer(self, feeds: Feeds) -> Outputs:
        """Run once. Shapes must be the engine's; raises ModelError otherwise."""
        ...

    def time(self, feeds: Feeds, plan: TimingPlan) -> Sequence[int]:
        """Return nanoseconds of each counted inference, clocked where the engine runs."""
        ...

    def layer_times(self, feeds: Feeds, runs: int = 50) -> Sequence[LayerTime]:
        """Return mean time by executed layer, or an empty sequence where the runtime cannot tell."""
        ...


def device_of(target: Target) -> str:
    """Return what a target's engines run on where that is not this machine's processor, or an empty string.

    Such a target carries ``device``: what was measured there holds for no other one.
    """
    return str(getattr(target, "device", ""))


def is_emulated(target: Target) -> bool:
    """Return whether a target's device is emulated: its answers count, its latency means nothing.

    Such a target carries ``emulated = True``, and its sessions refuse `Session.time`.
    """
    return bool(getattr(target, "emulated", False))


def session_properties(session: Session) -> dict[str, Any]:
    """Return what a session says about how it runs: threads, pinning, precision, clock.

    Sessions may carry a mapping called ``properties``; it is no part of the protocol, so that the
    smallest session is three methods.
    """
    properties = getattr(session, "properties", None)
    return dict(properties) if isinstance(properties, Mapping) else {}


@runtime_checkable
class Target(Protocol):
    """One runtime on one kind of device."""

    name: str
    profile: str
    """The QDQ profile it is fed: ``"u8"`` or ``"s8"``."""

    def probe(self) -> Availability:
        """Say what works here. Never raises."""
        ...

    def lower(self, artifact: OnnxArtifact, workdir: Path) -> OnnxArtifact:
        """Return the artifact in this target's fastest spelling, numbers unchanged."""
        ...

    def build(self, artifact: OnnxArtifact, workdir: Path) -> Engine:
        """Make an engine file in `workdir` from a lowered artifact."""
        ...

    def open(self, engine: Engine, *, threads: int = 1) -> AbstractContextManager[Session]:
        """Open an engine after checking its hash."""
        ...
