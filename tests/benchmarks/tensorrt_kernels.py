"""What TensorRT for RTX makes of attention in INT8: kernels, types and reformats, read from its log.

Run from the checkout; no GPU is needed::

    python -m tests.benchmarks.tensorrt_kernels --json recipes/benchmarks/tensorrt_kernels.json

Every network is lowered once, and that one file is built for every compute capability. Weights are random:
kernels do not depend on values. Where a bound is missed it is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edgeattn.export.artifacts import save_artifact
from edgeattn.lower import preferred_forms
from edgeattn.lower.lowering import lower_artifact
from edgeattn.targets.tensorrt_rtx import TensorRtRtx
from tests.targets.network_builds import whole_network

__all__ = ["main", "missed_bounds"]

ARCHITECTURES = ("mobilenet_v2", "efficientnet_lite0")
ATTENTIONS = ("none", "se", "eca", "coord", "triplet", "cbam")
CAPABILITIES = ("SM86", "SM75", "SM80", "SM89", "SM120", "SM121")
"""The first is the one that is described; of the others the counts are kept."""

SIZE = 224
MOST_KERNELS = {"coord": 5.0, "eca": 4.0}
MOST_REFORMATS = 1.0
_WITHOUT_INT8_CONVOLUTIONS = ("SM75",)


def measure_row(
    architecture: str, attention: str, capabilities: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Build one network for every capability and return what was built."""
    form = preferred_forms("tensorrt-rtx").get(attention)
    built = whole_network(architecture, attention, form, SIZE)
    artifact = save_artifact(built.model, folder / f"{architecture}-{attention}.onnx", "s8", {})
    lowered = lower_artifact(artifact, target="tensorrt-rtx", workdir=folder)
    builds: dict[str, dict[str, Any]] = {}
    for capability in capabilities:
        started = time.perf_counter()
        details = TensorRtRtx(compute_capability=capability).build(lowered, folder).details
        coverage = details["coverage"]
        builds[capability] = {
            "kernels": details["kernels"],
            "reformats": details["reformats"],
            "int8_coverage": coverage["int8_coverage"],
            "not_int8": coverage["not_int8"],
            "float32_kernels": coverage["float32_kernels"],
            "float32_kernel_names": coverage["float32_kernel_names"],
            "uint8_warnings": sum("UINT8" in text.upper() for text in details["warnings"]),
            "bytes_moved": coverage["bytes_moved"],
            "build_seconds": round(time.perf_counter() - started, 2),
        }
    described = builds[capabilities[0]]
    return {
        "model": architecture,
        "attention": attention,
        "form": form,
        "gates": built.gates,
        "layers_with_weights": coverage["convolutions"],
        **described,
        "builds": {
            name: {key: value for key, value in build.items() if key in _COUNTS}
            for name, build in builds.items()
        },
    }


_COUNTS = ("kernels", "reformats", "int8_coverage", "float32_kernels", "uint8_warnings")


def add_differences(rows: Sequence[dict[str, Any]]) -> None:
    """Add what each gate adds to the bare network of the same architecture, in kernels and reformats."""
    bare = {row["model"]: row for row in rows if row["attention"] == "none"}
    for row in rows:
        base = bare[row["model"]]
        for key in ("kernels", "reformats"):
            more = row[key] - base[key]
            row[f"{key}_per_gate"] = more / row["gates"] if row["gates"] else None


def missed_bounds(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say which bounds are missed: all of them hold for every capability with INT8 convolutions."""
    for row in rows:
        where = f"{row['model']} with {row['attention']}"
        for name, build in row["builds"].items():
            if build["uint8_warnings"]:
                yield f"{where}, {name}: {build['uint8_warnings']} UINT8 warnings"
            if name in _WITHOUT_INT8_CONVOLUTIONS:
                continue
            if build["int8_coverage"] != 1.0:
                yield f"{where}, {name}: {100 * build['int8_coverage']:.1f} % of the layers are INT8"
            if build["float32_kernels"]:
                yield f"{where}, {name}: {build['float32_kernels']} float32 kernels beyond the last layer"
        if not row["gates"]:
            continue
        most = MOST_KERNELS.get(row["attention"])
        if most is not None and row["kernels_per_gate"] > most:
            yield f"{where}: {row['kernels_per_gate']:.2f} kernels a gate, at most {most:g}"
        if row["reformats_per_gate"] > MOST_REFORMATS:
            yield f"{where}: {row['reformats_per_gate']:.2f} reformats a gate, at most {MOST_REFORMATS:g}"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Count what TensorRT for RTX builds.")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--models", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--rows", nargs="+", default=list(ATTENTIONS), help="attention kinds")
    parser.add_argument("--capabilities", nargs="+", choices=CAPABILITIES, default=list(CAPABILITIES))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    availability = TensorRtRtx().probe()
    if not availability.can_build:
        sys.stderr.write(f"{availability.reason}\n")
        return 3
    kinds = ["none", *(name for name in options.rows if name != "none")]
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgeattn-kernels-") as folder:
        for architecture in options.models:
            for kind in kinds:
                rows.append(measure_row(architecture, kind, options.capabilities, Path(folder)))
                sys.stdout.write(json.dumps({k: v for k, v in rows[-1].items() if k != "builds"}) + "\n")
                sys.stdout.flush()
    add_differences(rows)
    missed = list(missed_bounds(rows))
    value = {
        "target": "tensorrt-rtx",
        "version": availability.version,
        "size": SIZE,
        "described": options.capabilities[0],
        "missed": missed,
        "rows": rows,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    for text in missed:
        sys.stderr.write(f"missed: {text}\n")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
