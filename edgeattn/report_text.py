"""Sentences that the console and the page share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgeattn.report import TargetResult

__all__ = ["device_text", "outputs_text", "slower_text"]


def outputs_text(target: TargetResult) -> str:
    """Return the SQNR of each of several outputs, worst first; empty where there is one."""
    ratios = sorted(target.outputs_sqnr_db.items(), key=lambda item: math.inf if item[1] is None else item[1])
    return ", ".join(
        f"{name} {'identical' if ratio is None else f'{ratio:.1f} dB'}" for name, ratio in ratios
    )


def slower_text(name: str, target: TargetResult) -> str:
    """Return by how much INT8 is slower than FP32, if that is beyond doubt; empty otherwise, and for the reference."""
    if name == "reference" or target.speedup_interval is None or target.speedup_interval[1] >= 1:
        return ""
    slowest, fastest = (1 / value for value in target.speedup_interval)
    return (
        f"INT8 takes {fastest:.2f} to {slowest:.2f} times as long as FP32 here; "
        "`edgeattn profile` of the INT8 engine shows where the time goes"
    )


def device_text(build: Mapping[str, Any]) -> str:
    """Return where a target on another machine ran, and with which runtime; empty for one that runs here.

    Args:
        build: An engine's details; a device's own words are in ``build["device"]``.
    """
    device = build.get("device")
    if not isinstance(device, Mapping):
        return ""
    what = device.get("model") or f"no known Jetson ({device.get('architecture', 'unknown processor')})"
    jetpack = f", JetPack {device['jetpack']}" if device.get("jetpack") else ""
    runtime = str(build.get("runtime") or "")
    without = ", so without TensorRT" if runtime.startswith("ort ") else ""
    return f"ran on {what}{jetpack}, with {runtime or 'an unknown runtime'}{without}"
