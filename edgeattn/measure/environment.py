"""The machine behind a measurement: an absolute time means nothing without it.

Read from the operating system's files and the standard library; no runtime is loaded. Nothing that names
the machine or its user is recorded.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from edgeattn.extras import installed_version

__all__ = ["describe_environment"]

_PACKAGES = (
    "edgeattn",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "nncf",
)
# As /proc/cpuinfo spells them -> as vendors do. All that INT8 and reduced-precision kernels choose by.
_INSTRUCTION_SETS = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "ONEDNN_MAX_CPU_ISA")


def describe_environment(root: Path = Path("/")) -> dict[str, Any]:
    """Return a JSON-ready description of this machine. Never raises: what cannot be read is None.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    cpuinfo = _cpuinfo(root)
    return {
        "cpu": {
            "model": _first(cpuinfo, "model name", "Model", "Hardware") or platform.processor() or None,
            "generation": _generation(cpuinfo),
            "architecture": platform.machine(),
            "logical_cores": os.cpu_count(),
            "physical_cores": _physical_cores(cpuinfo),
            "usable_cores": _usable_cores(),
            "instruction_sets": _instruction_sets(cpuinfo),
            "governor": _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "boost": _boost(root),
        },
        "gpus": _gpus(root),
        "memory_bytes": _memory_bytes(root),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: v for name in _PACKAGES if (v := installed_version(name)) is not None},
        "container": {"cpu_quota_cores": _cpu_quota(root), "memory_limit_bytes": _memory_limit(root)},
        "load_average": _load_average(),
        "variables": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
    }


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    """Return /proc/cpuinfo by processor."""
    processors: list[dict[str, str]] = []
    for block in (_read(root / "proc/cpuinfo") or "").split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
        if fields := {key.strip(): value.strip() for key, _, value in pairs}:
            processors.append(fields)
    return processors


def _first(processors: list[dict[str, str]], *keys: str) -> str | None:
    return next((p[key] for key in keys for p in processors if p.get(key)), None)


def _generation(processors: list[dict[str, str]]) -> str | None:
    """Return the numbers by which a vendor tells its designs apart: clouds give several the same name."""
    for keys in (("cpu family", "model"), ("CPU implementer", "CPU part")):
        values = [_first(processors, key) for key in keys]
        if all(values):
            return ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
    return None


def _physical_cores(processors: list[dict[str, str]]) -> int | None:
    cores = {(p["physical id"], p["core id"]) for p in processors if "physical id" in p and "core id" in p}
    return len(cores) or None


def _usable_cores() -> int | None:
    # Not on macOS or Windows.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count()


def _instruction_sets(processors: list[dict[str, str]]) -> list[str]:
    flags = set((_first(processors, "flags", "Features") or "").split())
    return [name for flag, name in _INSTRUCTION_SETS.items() if flag in flags]


def _boost(root: Path) -> bool | None:
    folder = root / "sys/devices/system/cpu"
    if (boost := _read(folder / "cpufreq/boost")) is not None:
        return boost == "1"
    no_turbo = _read(folder / "intel_pstate/no_turbo")
    return no_turbo == "0" if no_turbo is not None else None


def _gpus(root: Path) -> list[str]:
    """Return NVIDIA GPU models, from the driver's files: asking CUDA would start it in this process."""
    try:
        texts = [
            _read(path) or "" for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
        ]
    except OSError:
        return []
    matches = (re.search(r"^Model:\s*(.+)$", text, re.MULTILINE) for text in texts)
    return [match.group(1).strip() for match in matches if match]


def _memory_bytes(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def _cpu_quota(root: Path) -> float | None:
    """Return how many cores the container may use, or None if it is not limited."""
    version2 = (_read(root / "sys/fs/cgroup/cpu.max") or "").split()
    if len(version2) == 2:
        return _quotient(*version2)
    folder = root / "sys/fs/cgroup/cpu"
    return _quotient(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _quotient(quota: str | None, period: str | None) -> float | None:
    # "max" in version 2 and -1 in version 1 mean that there is no limit.
    if quota is None or period is None or not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _memory_limit(root: Path) -> int | None:
    folder = root / "sys/fs/cgroup"
    limit = _read(folder / "memory.max") or _read(folder / "memory/memory.limit_in_bytes")
    # Version 1 writes a number near 2^63 for "no limit".
    return int(limit) if limit is not None and limit.isdigit() and int(limit) < 1 << 60 else None


def _load_average() -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (OSError, AttributeError):
        return None
