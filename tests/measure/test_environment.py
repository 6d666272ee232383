"""The machine's description: complete, valid JSON, and harmless where files are missing."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from edgeattn.measure import describe_environment

CPUINFO = """processor\t: 0
cpu family\t: 23
model\t\t: 49
model name\t: Some CPU @ 2 GHz
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8
physical id\t: 0
core id\t\t: 0

processor\t: 1
model name\t: Some CPU @ 2 GHz
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8
physical id\t: 0
core id\t\t: 0

processor\t: 2
model name\t: Some CPU @ 2 GHz
physical id\t: 0
core id\t\t: 1
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine() -> None:
    environment = describe_environment()
    json.dumps(environment, allow_nan=False)
    assert environment["python"] == platform.python_version()
    assert environment["cpu"]["logical_cores"] >= 1
    assert "numpy" in environment["packages"]
    assert platform.node() not in json.dumps(environment["cpu"]) or not platform.node()


def test_a_described_machine(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": CPUINFO,
            "proc/meminfo": "MemFree: 1 kB\nMemTotal:       2048 kB\n",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t NVIDIA RTX A4000\nIRQ: 1\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/devices/system/cpu/intel_pstate/no_turbo": "1\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/memory.max": "1048576\n",
        },
    )
    environment = describe_environment(root)
    cpu = environment["cpu"]
    assert cpu["model"] == "Some CPU @ 2 GHz"
    assert cpu["generation"] == "cpu family 23, model 49"
    assert cpu["physical_cores"] == 2
    assert cpu["instruction_sets"] == ["avx2", "avx512f", "avx512_vnni", "amx_int8"]
    assert (cpu["governor"], cpu["boost"]) == ("powersave", False)
    assert environment["gpus"] == ["NVIDIA RTX A4000"]
    assert environment["memory_bytes"] == 2048 * 1024
    assert environment["container"] == {"cpu_quota_cores": 1.5, "memory_limit_bytes": 1 << 20}


def test_an_arm_machine(tmp_path: Path) -> None:
    text = (
        "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\n"
        "Model\t\t: Some Board\n"
    )
    cpu = describe_environment(write(tmp_path, {"proc/cpuinfo": text}))["cpu"]
    assert cpu["model"] == "Some Board"
    assert cpu["generation"] == "CPU implementer 0x41, CPU part 0xd0b"
    assert cpu["instruction_sets"] == ["dotprod", "i8mm"]
    assert cpu["physical_cores"] is None


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        (
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ({"sys/fs/cgroup/cpu.max": "100000 0"}, None),
    ],
)
def test_cpu_quota(files: dict[str, str], cores: float | None, tmp_path: Path) -> None:
    assert describe_environment(write(tmp_path, files))["container"]["cpu_quota_cores"] == cores


def test_an_empty_machine_is_described_as_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment: dict[str, Any] = describe_environment(tmp_path)
    assert environment["memory_bytes"] is None
    assert environment["cpu"]["instruction_sets"] == []
    assert environment["cpu"]["generation"] is None
    assert environment["gpus"] == []
    assert environment["variables"]["OMP_NUM_THREADS"] == "3"
    json.dumps(environment, allow_nan=False)
