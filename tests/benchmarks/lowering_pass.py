"""What single lowering passes are worth: engines with and without one, and FP32, timed in alternation.

Run from the checkout::

    python -m tests.benchmarks.lowering_pass --json passes.json
    python -m tests.benchmarks.lowering_pass --cases efficientnet_b0:openvino-cpu:whole-swishes --threads 1 --json b0.json

Networks are those of `mobile_networks`, with random weights and batch norms of noise, as in `attention_tax`: latency does
not depend on values. Passes change no number, or leave out a rounding, so there is no accuracy to measure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeattn.export.float_onnx import export_float
from edgeattn.export.qdq import emit_qdq
from edgeattn.lower.passes import PASSES
from edgeattn.measure.latency import OPENINGS
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.ptq import make_plan
from edgeattn.targets import get_target
from edgeattn.targets.base import TimingPlan
from tests.benchmarks.attention_tax import ratio_of, save_model, take_statistics, time_engines
from tests.benchmarks.figures import figures_parser, publish
from tests.benchmarks.mobile_networks import NETWORKS, SIZES, seeded

__all__ = ["CASES", "main", "measure"]

CASES = (
    "mobilenet_v3_large:ort-cpu:block-channels",
    "mobilenet_v3_small:ort-cpu:block-channels",
    "mobilenet_v3_large:ort-cpu:integer-swish",
    "efficientnet_b0:openvino-cpu:whole-swishes",
    "mobilevit_xxs:openvino-cpu:whole-attention",
    "mobilevit_xxs:ort-cpu:whole-attention",
    "mobilevit_xxs:ort-cpu:merge-moves",
)
"""Network, target and pass."""


@contextmanager
def _without(target: str, name: str) -> Iterator[None]:
    """Lower for a target without one of its passes."""
    whole = PASSES[target]
    PASSES[target] = tuple(item for item in whole if item.name != name)
    try:
        yield
    finally:
        PASSES[target] = whole


def measure(case: str, plans: Sequence[TimingPlan], rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Build a case's three engines, and time them as each plan says.

    Args:
        case: ``network:target:pass``.
        plans: Counted inferences of each engine, over all rounds, and threads.
        rounds: How often the engines take turns.
        folder: For files.

    Raises:
        ValueError: If the pass changes nothing in the network, or the target has no such pass.
    """
    network, name, pass_name = case.split(":")
    target = get_target(name)
    if pass_name not in {item.name for item in PASSES[name]}:
        raise ValueError(f"{name} has no pass {pass_name!r}")
    generator = np.random.default_rng(0)
    size = SIZES[network]
    images = [generator.standard_normal((1, 3, size, size)).astype(np.float32) for _ in range(2)]
    floating = export_float(take_statistics(seeded(network), size), images[0].shape).model
    config = PtqConfig(range_estimator="minmax", equalization=False, stop_at_sqnr_db=-1000.0)
    quantized = emit_qdq(floating, make_plan(floating, images, config), target.profile)
    engines = {}
    for label, model, profile in (
        ("with", quantized, target.profile),
        ("without", quantized, target.profile),
        ("fp32", floating, "fp32"),
    ):
        artifact = save_model(model, folder / f"{label}.onnx", profile)
        if label == "without":
            with _without(name, pass_name):
                lowered = target.lower(artifact, folder / label)
        else:
            lowered = target.lower(artifact, folder / label)
        if label == "with" and pass_name not in lowered.provenance.get("lowering_passes", "").split(","):
            raise ValueError(f"{pass_name!r} changes nothing in {network}")
        engines[label] = target.build(lowered, folder / "engines")
    rows = []
    for plan in plans:
        times = time_engines(target, engines, images[0], plan, rounds)
        row: dict[str, Any] = {"network": network, "size": size, "target": name, "pass": pass_name}
        row["threads"] = plan.threads
        row |= {f"{label}_ms": float(np.median(medians)) for label, medians in times.items()}
        for key, numerator, denominator in (
            ("gain", "without", "with"),
            ("before_vs_fp32", "fp32", "without"),
            ("vs_fp32", "fp32", "with"),
        ):
            row[key], row[f"{key}_interval"] = ratio_of(times, numerator, denominator)
        rows.append(row)
        sys.stderr.write(json.dumps(row) + "\n")
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = figures_parser(__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="NETWORK:TARGET:PASS")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="64 inferences of each engine")
    options = parser.parse_args(arguments)
    for case in options.cases:
        _check(parser, case)
    torch.set_num_threads(1)
    make, rounds = (TimingPlan.quick, 8) if options.quick else (_long, 32)
    rows = []
    for case in options.cases:
        with tempfile.TemporaryDirectory(prefix="edgeattn-pass-") as folder:
            plans = [make(threads=count) for count in options.threads]
            rows += measure(case, plans, rounds, Path(folder))
    publish({"quick": options.quick, "openings": OPENINGS, "rows": rows}, options.json)
    return 0


def _long(threads: int) -> TimingPlan:
    return TimingPlan(min_runs=1024, min_seconds=10.0, threads=threads)


def _check(parser: argparse.ArgumentParser, case: str) -> None:
    network, _, rest = case.partition(":")
    if network not in NETWORKS or rest.partition(":")[0] not in PASSES or rest.count(":") != 1:
        parser.error(f"{case!r} is no NETWORK:TARGET:PASS; networks are {', '.join(NETWORKS)}")


if __name__ == "__main__":
    raise SystemExit(main())
