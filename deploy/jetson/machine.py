"""What this machine is and how it runs: read from files, without root; what cannot be read is left out."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from jetson_support import find_jetson_module, jetpack_of_l4t, jetson_support

__all__ = ["describe_machine", "read_state"]


def describe_machine(root: Path = Path("/")) -> dict:
    """Return what does not change: model, JetPack, kernel, processor.

    Args:
        root: Where ``proc``, ``sys`` and ``etc`` are.
    """
    model = _text(root / "proc/device-tree/model")
    module = find_jetson_module(model) if model else None
    l4t = _l4t(root)
    found = {
        "model": model or None,
        "module": module.name if module else None,
        "l4t": ".".join(map(str, l4t)) if l4t else None,
        "jetpack": _jetpack_package() or (jetpack_of_l4t(l4t) if l4t else None),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    return {key: value for key, value in found.items() if value is not None}


def support(machine: dict, tensorrt: str) -> dict:
    """Return what TensorRT can do here by NVIDIA's table; empty where this is no known Jetson."""
    if "module" not in machine or "jetpack" not in machine:
        return {}
    found = jetson_support(tensorrt, machine["jetpack"], machine["module"])
    return {"gpu": found.gpu, "dla_cores": found.dla_cores, "why": found.why}


def read_state(root: Path = Path("/")) -> dict:
    """Return what changes: power mode, clocks (Hz), temperatures (deg C) and power (W)."""
    state = {
        "power_mode": _power_mode(root),
        "gpu_hz": _gpu_clock(root),
        "cpu_hz": _cpu_clocks(root),
        "emc_hz": _number(root / "sys/kernel/debug/bpmp/debug/clk/emc/rate"),
        "temperature_c": _temperatures(root),
        "power_w": _power(root),
    }
    return {key: value for key, value in state.items() if value not in (None, {}, [])}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", "").strip()[:1000]
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else None


def _l4t(root: Path) -> tuple:
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release"))
    return tuple(int(part) for part in f"{match.group(1)}.{match.group(2)}".split(".")) if match else ()


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _jetpack_package() -> str | None:
    match = re.match(r"\d+(\.\d+)+", _output("dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack"))
    return match.group() if match else None


def _power_mode(root: Path) -> str | None:
    match = re.search(r"NV Power Mode: *(\S+)", _output("nvpmodel", "-q"))
    if match:
        return match.group(1)
    # Older tools let only root ask; the mode's number is in a file.
    status = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status"))
    return f"mode {int(status.group(1))}" if status else None


def _gpu_clock(root: Path) -> dict | None:
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if re.search(r"gpu|gv11b|ga10b|gb10b", folder.name):
            found = {name: _number(folder / f"{name}_freq") for name in ("cur", "min", "max")}
            return {name: value for name, value in found.items() if value is not None} or None
    return None


def _cpu_clocks(root: Path) -> list:
    paths = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    return [value * 1000 for path in paths if (value := _number(path)) is not None]


def _temperatures(root: Path) -> dict:
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, value = _text(zone / "type"), _number(zone / "temp")
        if name and value is not None and -50_000 < value < 200_000:
            found[name[:40]] = value / 1000
    return found


def _power(root: Path) -> dict:
    """Return the rails of the INA monitors: volts times amperes, as the hwmon interface gives them."""
    found = {}
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if not _text(monitor / "name").startswith("ina"):
            continue
        for label in sorted(monitor.glob("in[0-9]*_label")):
            index = re.findall(r"\d+", label.name)[0]
            millivolts = _number(monitor / f"in{index}_input")
            milliamperes = _number(monitor / f"curr{index}_input")
            if millivolts is not None and milliamperes is not None:
                found[_text(label)[:40]] = millivolts * milliamperes / 1e6
    return found
