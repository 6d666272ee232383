"""What is possible on which Jetson: TensorRT version x JetPack version x module.

The ground moved with TensorRT 11: weak typing and calibrators went, JetPack was left out until 11.4.1, and DLA
was left out between 10.7 and 11.4.1. Sources: NVIDIA's pages "Migrating TensorRT from 10.x to 11.x on
Jetson/JetPack" and "Working with DLA" of TensorRT 11.0 to 11.4.1 (where they contradict each other, the later
one counts).

Standard library only and nothing of edgeattn: Jetson kits carry a copy of this file.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

__all__ = [
    "JETSON_MODULES",
    "JETSON_RULES",
    "JetsonModule",
    "JetsonRule",
    "JetsonSupport",
    "find_jetson_module",
    "jetpack_of_l4t",
    "jetson_support",
    "parse_version",
]

Version = tuple[int, ...]


def parse_version(text: str) -> Version:
    """Return the numbers at the start of a version: ``"10.3.0.30"`` -> ``(10, 3, 0, 30)``.

    Raises:
        ValueError: If it does not begin with a number.
    """
    match = re.match(r"\d{1,6}(\.\d{1,6}){0,7}", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a version; expected numbers such as 10.3.0.")
    return tuple(int(part) for part in match.group().split("."))


class JetsonModule(NamedTuple):
    """One kind of Jetson module.

    Attributes:
        name: Ours.
        pattern: Regular expression that matches the device tree's ``model``.
        compute_capability: Of its GPU.
        dla_cores: Deep learning accelerators on it; the smaller Orin NX has one.
    """

    name: str
    pattern: str
    compute_capability: str
    dla_cores: int


# The first that matches counts.
JETSON_MODULES: tuple[JetsonModule, ...] = (
    JetsonModule("thor", r"\bThor\b", "SM110", 0),
    JetsonModule("agx-orin", r"AGX Orin", "SM87", 2),
    JetsonModule("orin-nx", r"Orin NX", "SM87", 2),
    JetsonModule("orin-nano", r"Orin Nano", "SM87", 0),
    JetsonModule("agx-xavier", r"AGX Xavier|Jetson-AGX", "SM72", 2),
    JetsonModule("xavier-nx", r"Xavier NX", "SM72", 2),
)

_ORIN = frozenset({"agx-orin", "orin-nx", "orin-nano"})
_EVERY = frozenset(module.name for module in JETSON_MODULES)


class JetsonRule(NamedTuple):
    """One row of the table: it holds where both versions lie in [first, last) and the module is listed.

    Attributes:
        tensorrt: First TensorRT version, and the first that it no longer holds for.
        jetpack: The same of JetPack.
        modules: Names.
        gpu: Whether TensorRT runs on the GPU there.
        dla: Whether it builds for DLA there, given that the module has one.
        why: For people.
    """

    tensorrt: tuple[Version, Version]
    jetpack: tuple[Version, Version]
    modules: frozenset[str]
    gpu: bool
    dla: bool
    why: str


_ANY: tuple[Version, Version] = ((0,), (1_000,))

# The first row that holds counts.
JETSON_RULES: tuple[JetsonRule, ...] = (
    JetsonRule(
        ((0,), (10,)),
        _ANY,
        _EVERY,
        False,
        False,
        "TensorRT before 10 has no strongly typed networks; JetPack 6 and newer bring TensorRT 10",
    ),
    JetsonRule(
        ((10,), (10, 8)),
        ((6,), (7,)),
        _ORIN,
        True,
        True,
        "TensorRT 10 up to 10.7 on JetPack 6; 10.7 was its last version with DLA",
    ),
    JetsonRule(
        ((10, 8), (11,)), ((6,), (7,)), _ORIN, True, False, "TensorRT 10.8 and later 10.x have no DLA"
    ),
    JetsonRule(
        ((10,), (11,)),
        ((7,), (8,)),
        frozenset({"thor"}),
        True,
        False,
        "TensorRT 10 on JetPack 7; no DLA on Thor",
    ),
    JetsonRule(
        ((10,), (11,)),
        ((7, 2), (8,)),
        _ORIN,
        True,
        False,
        "JetPack supports Orin again from 7.2 on; TensorRT 10.8 and later 10.x have no DLA",
    ),
    JetsonRule(
        ((11,), (11, 4, 1)),
        _ANY,
        _EVERY,
        False,
        False,
        "TensorRT 11.0 to 11.4.0 do not support JetPack; stay on the 10.x of your JetPack, or take 11.4.1",
    ),
    JetsonRule(
        ((11, 4, 1), (12,)),
        ((7, 2, 2), (8,)),
        frozenset({"agx-orin"}),
        True,
        True,
        "TensorRT 11.4.1 (SBSA package) on JetPack 7.2.2; DLA is back, with strongly typed networks",
    ),
    JetsonRule(
        ((11, 4, 1), (12,)),
        ((7, 2, 2), (8,)),
        frozenset({"thor"}),
        True,
        False,
        "TensorRT 11.4.1 (SBSA package) on JetPack 7.2.2; no DLA on Thor",
    ),
    JetsonRule(
        ((11, 4, 1), (12,)),
        ((0,), (7, 2, 2)),
        _EVERY,
        False,
        False,
        "TensorRT 11.4.1 needs JetPack 7.2.2 or newer; stay on the 10.x of your JetPack",
    ),
)


@dataclasses.dataclass(frozen=True)
class JetsonSupport:
    """What one combination can do.

    Attributes:
        gpu: Whether TensorRT engines run on the GPU.
        dla: Whether engines can be built for DLA.
        dla_cores: How many DLA cores there are to use: 0 without ``dla``.
        why: The reason, for people.
    """

    gpu: bool
    dla: bool
    dla_cores: int
    why: str


def find_jetson_module(model: str) -> JetsonModule | None:
    """Return the module behind a device tree's model string, or None if it is not a known Jetson."""
    return next((m for m in JETSON_MODULES if re.search(m.pattern, model, re.IGNORECASE)), None)


# L4T (Linux for Tegra) release -> JetPack, newest first: the first that is not newer counts.
_JETPACK_OF_L4T: tuple[tuple[Version, str], ...] = (
    ((38, 4), "7.1"),
    ((38,), "7.0"),
    ((36, 4, 4), "6.2.1"),
    ((36, 4, 3), "6.2"),
    ((36, 4), "6.1"),
    ((36,), "6.0"),
    ((34,), "5"),
    ((32,), "4"),
)
_NEWEST_L4T = 39


def jetpack_of_l4t(l4t: Version) -> str | None:
    """Return the JetPack version that brought an L4T release, or None if it is not known here."""
    if l4t[:1] >= (_NEWEST_L4T,):
        return None
    return next((jetpack for first, jetpack in _JETPACK_OF_L4T if l4t >= first), None)


def jetson_support(tensorrt: str, jetpack: str, module: str) -> JetsonSupport:
    """Say what a combination can do.

    Args:
        tensorrt: Version, such as ``"10.3.0"``.
        jetpack: Version, such as ``"6.2"``.
        module: A name of `JETSON_MODULES`.

    Raises:
        ValueError: If a version is not one, or the module is unknown.
    """
    known = {m.name: m for m in JETSON_MODULES}
    if module not in known:
        raise ValueError(f"Unknown Jetson module {module!r}. Known: {', '.join(sorted(known))}.")
    trt, jp = parse_version(tensorrt), parse_version(jetpack)
    for rule in JETSON_RULES:
        if module in rule.modules and _within(trt, rule.tensorrt) and _within(jp, rule.jetpack):
            cores = known[module].dla_cores if rule.dla else 0
            return JetsonSupport(rule.gpu, cores > 0, cores, rule.why)
    return JetsonSupport(
        False, False, 0, f"NVIDIA lists no support for TensorRT {tensorrt} with JetPack {jetpack} on {module}"
    )


def _within(version: Version, bounds: tuple[Version, Version]) -> bool:
    return bounds[0] <= version < bounds[1]
