"""README.md's tables of what benchmarks wrote to ``recipes/benchmarks``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeattn.artifact import read_json
from edgeattn.errors import ArtifactError
from edgeattn.readme_tables import markdown, processor
from edgeattn.report_kernels import kernel_table

__all__ = ["attention_tax", "lowering_passes", "tensorrt_kernels"]

_NOTHING = "-"
_TAXED = {"mobilenet_v2": "MobileNetV2 1.0", "efficientnet_lite0": "EfficientNet-Lite0"}
_PASSED = {
    "mobilenet_v3_large": "MobileNetV3-large",
    "mobilenet_v3_small": "MobileNetV3-small",
    "efficientnet_b0": "EfficientNet-B0",
    "mobilevit_xxs": "MobileViT-XXS",
}


def attention_tax(root: Path) -> str:
    """Return what attention costs in INT8, ours against other tools'."""
    results, openings, limits = [], set(), set()
    for path in sorted((root / "recipes" / "benchmarks").glob("attention_tax_*.json")):
        value = read_json(path)
        try:
            held = _held_to(value)
            machine = processor(value["environment"]["cpu"])
            place = (list(_TAXED).index(value["model"]), value["target"], held, machine, value["threads"])
            results.append((place, [_tax_row(value, row) for row in value["rows"]]))
            openings.add(f"{value.get('openings', 1):d}")
            limits |= {held} - {""}
        except (KeyError, TypeError, ValueError) as exc:
            raise ArtifactError(
                f"{path} is not a result of tests.benchmarks.attention_tax: {exc!r}. Run the benchmark again."
            ) from exc
    machines = sorted({place[3] for place, _ in results})
    rows = [
        (*row, str(machines.index(place[3]) + 1))
        for place, found in sorted(results, key=lambda result: result[0])
        for row in found
    ]
    if not rows:
        return "No benchmark is saved yet: run `python -m tests.benchmarks.attention_tax`."
    header = (
        "network",
        "target, threads",
        "attention",
        "INT8 p50",
        "against our FP32",
        "tax",
        "best other tool",
        "its tax",
        "against it",
        "machine",
    )
    numbered = "; ".join(f"{number} {name}" for number, name in enumerate(machines, 1))
    return (
        markdown(header, rows, left=3)
        + "\n\n224x224, batch 1. Tax: how much longer the INT8 network takes than the bare one, which "
        "for the other tools is the fastest of theirs. The other tool is the fastest of NNCF on the authors' torch modules, NNCF on their ONNX and ONNX Runtime's "
        "quantize_static, all on the same runtime. Medians of ratios of runs in alternation, with 95 % intervals; every engine "
        f"was opened {' or '.join(sorted(openings))} times. "
        + "".join(
            f"{held}: with `ONEDNN_MAX_CPU_ISA={held}`, as where there is no AMX. " for held in sorted(limits)
        )
        + f"Machines: {numbered}."
    )


def _held_to(value: Mapping[str, Any]) -> str:
    """Return the newest instruction set that OpenVINO was allowed, or an empty string if all were."""
    variables = value["environment"]["variables"]
    return str(variables.get("ONEDNN_MAX_CPU_ISA", "")) if "openvino" in value["target"] else ""


def _tax_row(value: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, ...]:
    is_bare = row["attention"] == "none"
    return (
        _TAXED[value["model"]],
        ", ".join(filter(None, (value["target"], str(value["threads"]), _held_to(value)))),
        str(row["attention"]),
        f"{row['ours_int8_ms']:.3f} ms",
        _times(row, "vs_fp32"),
        _NOTHING if is_bare else _tax(row, "tax"),
        _NOTHING if row["peer"] is None else str(row["peer"]),
        _NOTHING if is_bare or row.get("peer_tax") is None else _tax(row, "peer_tax"),
        _NOTHING if row.get("vs_peer") is None else _times(row, "vs_peer"),
    )


def tensorrt_kernels(root: Path) -> str:
    """Return what TensorRT-RTX built of every attention."""
    path = root / "recipes" / "benchmarks" / "tensorrt_kernels.json"
    if not path.is_file():
        return "No benchmark is saved yet: run `python -m tests.benchmarks.tensorrt_kernels`."
    try:
        header, rows, said = kernel_table(read_json(path))
    except (KeyError, TypeError, IndexError) as exc:
        raise ArtifactError(
            f"{path} is not a result of tests.benchmarks.tensorrt_kernels: {exc!r}. Run the benchmark again."
        ) from exc
    return markdown(header, rows, left=3) + "\n\n" + said


def lowering_passes(root: Path) -> str:
    """Return what single lowering passes are worth."""
    path = root / "recipes" / "benchmarks" / "lowering_passes.json"
    if not path.is_file():
        return "No benchmark is saved yet: run `python -m tests.benchmarks.lowering_pass`."
    value = read_json(path)
    header = (
        "pass",
        "target, threads",
        "network, pixels a side",
        "INT8 p50",
        "without it",
        "gain",
        "FP32 over INT8 without it",
        "with it",
    )
    try:
        rows = [
            (
                f"`{row['pass']}`",
                f"{row['target']}, {row['threads']}",
                f"{_PASSED[row['network']]}, {row['size']}",
                f"{row['with_ms']:.3f} ms",
                f"{row['without_ms']:.3f} ms",
                _times(row, "gain"),
                _times(row, "before_vs_fp32"),
                _times(row, "vs_fp32"),
            )
            for row in value["rows"]
        ]
        said = f"every engine was opened {value['openings']:d} times. Measured on: {processor(value['environment']['cpu'])}."
    except (KeyError, TypeError, ValueError) as exc:
        raise ArtifactError(
            f"{path} is not a result of tests.benchmarks.lowering_pass: {exc!r}. Run the benchmark again."
        ) from exc
    return (
        markdown(header, rows, left=3)
        + "\n\nBatch 1, random weights. Medians of ratios of runs in alternation, with 95 % intervals; "
        + said
    )


def _times(row: Mapping[str, Any], key: str) -> str:
    low, high = row[f"{key}_interval"]
    return f"{row[key]:.2f}x ({low:.2f} to {high:.2f})"


def _tax(row: Mapping[str, Any], key: str) -> str:
    low, high = row[f"{key}_interval"]
    return f"{100 * row[key]:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
