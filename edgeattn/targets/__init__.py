"""Targets: one runtime on one kind of device each, found by name and made only when asked for.

Packages outside this one add theirs with an entry point in the group ``edgeattn.targets`` that names a
class, or a function without arguments, returning a `Target`.

The ``details`` of an engine use the same words on every target that can tell: ``runtime``,
``int8_convolutions``, ``float_convolutions``, ``kernels`` (nodes or kernels executed), ``reformats``
(layout or type conversions between them) and ``operators`` (counts by kind).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable
from typing import Any

from edgeattn.errors import RecipeError, TargetUnavailable, close_matches_hint
from edgeattn.registry import Registry
from edgeattn.targets.base import (
    Availability,
    Engine,
    Feeds,
    LayerTime,
    Outputs,
    Session,
    Target,
    TimingPlan,
    device_of,
    is_emulated,
    session_properties,
)
from edgeattn.targets.engine_files import load_engine, save_engine, verify_engine

__all__ = [
    "ENTRY_POINT_GROUP",
    "RESERVED_NAMES",
    "Availability",
    "Engine",
    "Feeds",
    "LayerTime",
    "Outputs",
    "Session",
    "Target",
    "TargetStatus",
    "TimingPlan",
    "get_target",
    "device_of",
    "is_emulated",
    "list_targets",
    "load_engine",
    "reload_plugins",
    "save_engine",
    "session_properties",
    "target_names",
    "targets",
    "verify_engine",
]

ENTRY_POINT_GROUP = "edgeattn.targets"

RESERVED_NAMES = ("ort-portable", "ort-web")
"""Names of `edgeattn.lower.PASSES` for files that run elsewhere, and no targets here: no plugin may take one."""

targets: Registry[Callable[..., Target]] = Registry("target")
"""The targets of this package: name -> factory. A factory imports its module when called."""


@dataclasses.dataclass(frozen=True)
class TargetStatus:
    """One line of the list of targets.

    Attributes:
        name: Name of the target.
        profile: The QDQ profile it is fed, or an empty string if it could not be loaded.
        origin: ``"edgeattn"``, or the distribution that brought it.
        availability: What works here.
    """

    name: str
    profile: str
    origin: str
    availability: Availability

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class _Plugins:
    factories: dict[str, tuple[Callable[..., Target], str]]
    broken: tuple[TargetStatus, ...]


def _register(name: str, module: str, attribute: str) -> None:
    def make(**options: Any) -> Target:
        target: Target = getattr(importlib.import_module(module), attribute)(**options)
        return target

    targets.register(name, make)


_register("reference", "edgeattn.targets.reference", "Reference")
_register("ort-cpu", "edgeattn.targets.ort_cpu", "OrtCpu")
_register("openvino-cpu", "edgeattn.targets.openvino_cpu", "OpenVinoCpu")
_register("tensorrt-rtx", "edgeattn.targets.tensorrt_rtx", "TensorRtRtx")
_register("tensorrt", "edgeattn.targets.tensorrt_full", "TensorRt")
_register("jetson-ssh", "edgeattn.targets.jetson_ssh", "JetsonSsh")
_register("arm64", "edgeattn.targets.arm64", "Arm64")


def target_names() -> tuple[str, ...]:
    """Return the names of all targets: this package's first, then the plugins'."""
    return (*targets.names(), *_plugins().factories)


def get_target(name: str, **options: Any) -> Target:
    """Return the target called `name`.

    Args:
        name: Such as ``"ort-cpu"``.
        **options: Passed to the target's constructor.

    Raises:
        RecipeError: If there is no such target, or it has no such option.
        TargetUnavailable: If the name is reserved, or the plugin that brings it is broken.
    """
    plugins = _plugins()
    if name in targets:
        factory = targets.get(name)
    elif name in plugins.factories:
        factory = plugins.factories[name][0]
    else:
        for status in plugins.broken:
            if status.name == name:
                raise TargetUnavailable(f"Target {name!r}: {status.availability.reason}")
        if name in RESERVED_NAMES:
            raise TargetUnavailable(
                f"The target name {name!r} is reserved and has no implementation in this version. "
                f"Use one of: {', '.join(target_names())}."
            )
        raise RecipeError(f"Unknown target {name!r}. {close_matches_hint(name, target_names())}")
    try:
        return factory(**options)
    except TypeError as exc:
        raise RecipeError(f"Target {name!r} does not take these options: {exc}.") from exc


def list_targets() -> tuple[TargetStatus, ...]:
    """Return every target with what works here, broken plugins included. Never raises."""
    statuses = [_status(name, targets.get(name), "edgeattn") for name in targets]
    plugins = _plugins()
    statuses += [_status(name, factory, origin) for name, (factory, origin) in plugins.factories.items()]
    return (*statuses, *plugins.broken)


def reload_plugins() -> None:
    """Look for plugins again, after packages were installed."""
    _plugins.cache_clear()


def _status(name: str, factory: Callable[..., Target], origin: str) -> TargetStatus:
    try:
        target = factory()
        return TargetStatus(name, str(target.profile), origin, target.probe())
    except Exception as exc:
        # A plugin that breaks its promises must not take the whole list down.
        return TargetStatus(name, "", origin, Availability(False, False, f"it failed when asked: {exc!r}"))


@functools.cache
def _plugins() -> _Plugins:
    """Load the plugins once, warning about each that does not load."""
    factories: dict[str, tuple[Callable[..., Target], str]] = {}
    broken: list[TargetStatus] = []
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        origin = entry.dist.name if entry.dist is not None else "unknown"
        reason, install = "", ""
        if entry.name in targets or entry.name in RESERVED_NAMES or entry.name in factories:
            reason = f"the name {entry.name!r}, given by {origin}, is taken"
        else:
            try:
                factories[entry.name] = (entry.load(), origin)
            except Exception as exc:
                reason = f"the plugin {entry.value} from {origin} could not be loaded ({exc!r})"
                install = f"pip install --upgrade {origin}"
        if reason:
            warnings.warn(f"Target plugin {entry.name!r} is skipped: {reason}.", UserWarning, stacklevel=2)
            broken.append(TargetStatus(entry.name, "", origin, Availability(False, False, reason, install)))
    return _Plugins(factories, tuple(broken))
