"""What attention costs in INT8: ours against what other tools make of the authors' modules.

Run from the checkout::

    python -m tests.benchmarks.attention_tax --target openvino-cpu --json tax.json --threads 1
    python -m tests.benchmarks.attention_tax --target ort-cpu --json 'tax_{threads}.json' --threads 1 2

Weights are random and batch norms take their statistics from noise: latency does not depend on values, but for
biases of zero. A runtime drops those, and the batch norms of an untrained network have nothing else.
Everything in one row is timed in alternation in one process. Engines are opened several times: two sessions of one
engine differ by up to 3 % for as long as they live, depending on where their memory lies.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeattn.artifact import OnnxArtifact, sha256_of_bytes, write_bytes
from edgeattn.export.float_onnx import export_float
from edgeattn.export.qdq import emit_qdq
from edgeattn.lower import DEFAULT_GATE_POLICY, preferred_forms
from edgeattn.measure.environment import describe_environment
from edgeattn.measure.latency import OPENINGS, compare_engines
from edgeattn.models import create_model, insert_attention, to_edge_form
from edgeattn.onnx_graph import Graph
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.gates import gate_regions
from edgeattn.quant.ptq import make_plan
from edgeattn.targets import get_target
from edgeattn.targets.base import Target, TimingPlan
from tests.benchmarks.authors_modules import put_authors_modules
from tests.benchmarks.peers import PEERS

__all__ = ["main", "ratio_of", "save_model", "take_statistics", "time_engines"]

Rounds = Mapping[str, Sequence[float]]
"""Median latency of each round in ms by engine."""

ROWS = ("none", "eca", "coord", "triplet", "se", "cbam")
SIZE = 224


def _network(architecture: str, attention: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = create_model(architecture, num_classes=1000)
    if attention == "none":
        return model
    # Gates that start as the identity have weights of zero: no network that anyone deploys.
    return insert_attention(model, attention, identity=False)


def take_statistics(model: nn.Module, size: int = SIZE) -> nn.Module:
    """Give batch norms the statistics of noise (size x size), and biases that no runtime drops."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.normal_(module.bias, std=0.1)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, size, size))
    return model.eval()


def save_model(model: Any, path: Path, profile: str) -> OnnxArtifact:
    """Write a model as an artifact of a profile."""
    data = model.SerializeToString()
    write_bytes(path, data)
    graph = Graph(model)
    inputs, outputs = graph.io_specs()
    return OnnxArtifact(path, sha256_of_bytes(data), graph.opset, inputs, outputs, profile)


def _ours(target: Target, attention: str, model: nn.Module, images: Any, folder: Path) -> dict[str, Any]:
    """Return our engines, INT8 and fp32."""
    forms = preferred_forms(target.name)
    form = {attention: forms[attention]} if attention in forms else None
    edge = to_edge_form(copy.deepcopy(model), SIZE, SIZE, form=form, materialize=True)
    floating = export_float(edge, images[0].shape).model
    gates = gate_regions(edge, DEFAULT_GATE_POLICY)
    config = PtqConfig(range_estimator="minmax", equalization=False, stop_at_sqnr_db=-1000.0)
    quantized = emit_qdq(floating, make_plan(floating, images, config, gates=gates), target.profile)
    engines = {}
    for name, value, profile in (("ours", quantized, target.profile), ("fp32", floating, "fp32")):
        artifact = save_model(value, folder / f"{attention}-{name}.onnx", profile)
        engines[name] = target.build(target.lower(artifact, folder / "lowered"), folder / "engines")
    return engines


def _peers(target: Target, attention: str, model: nn.Module, images: Any, folder: Path) -> dict[str, Any]:
    """Return every peer's engine; one that fails is left out and reported on stderr.

    The runtime takes their files as it takes anyone's: its kernels are not chosen by timing, which is ours.
    """
    engines = {}
    plain = get_target(target.name, timed_kernels=False) if target.name == "openvino-cpu" else target
    for name, quantize in PEERS.items():
        try:
            made = quantize(put_authors_modules(copy.deepcopy(model)), images, folder)
            artifact = save_model(made, folder / f"{attention}-{name}.onnx", "u8")
            engines[name] = plain.build(artifact, folder / "engines")
        except Exception as exc:
            sys.stderr.write(f"{attention}: {name} failed: {type(exc).__name__}: {exc}"[:300] + "\n")
    return engines


def ratio_of(rounds: Rounds, numerator: str, denominator: str) -> tuple[float, list[float]]:
    """Return the median over rounds of the ratio of two engines' medians, with its interval."""
    from edgeattn.measure.statistics import median_ratio_interval

    ratios = [a / b for a, b in zip(rounds[numerator], rounds[denominator], strict=True)]
    return float(np.median(ratios)), [float(end) for end in median_ratio_interval(ratios)]


def _row(attention: str, rounds: Rounds, peers: list[str]) -> dict[str, Any]:
    p50 = {name: float(np.median(medians)) for name, medians in rounds.items()}
    peer = min(peers, key=p50.__getitem__) if peers else None
    row: dict[str, Any] = {"attention": attention, "ours_int8_ms": p50["ours"], "ours_fp32_ms": p50["fp32"]}
    row["peer"], row["peer_int8_ms"] = peer, p50[peer] if peer else None
    row["peers_ms"] = {name: p50[name] for name in peers}
    pairs = {"vs_fp32": ("fp32", "ours"), "tax": ("ours", "bare")}
    if peer:
        pairs |= {"vs_peer": (peer, "ours"), "peer_tax": (peer, "bare_peer")}
    for key, (numerator, denominator) in pairs.items():
        if denominator == "bare" and attention == "none":
            row[key], row[f"{key}_interval"] = 0.0, [0.0, 0.0]
            continue
        if denominator not in p50:
            continue
        ratio, interval = ratio_of(rounds, numerator, denominator)
        shift = 1.0 if key.endswith("tax") else 0.0
        row[key], row[f"{key}_interval"] = ratio - shift, [end - shift for end in interval]
    return row


def measure(
    target: Target,
    architecture: str,
    rows: tuple[str, ...],
    plans: Sequence[TimingPlan],
    rounds: int,
    folder: Path,
) -> list[dict[str, Any]]:
    """Build every row once and time it as each plan says; return one result for each plan.

    Args:
        target: Where it runs.
        architecture: Name of the network.
        rows: Attention kinds; ``"none"`` is made in any case.
        plans: Counted inferences of each engine, over all rounds, and threads.
        rounds: How often the engines of a row take turns.
        folder: For files.
    """
    generator = np.random.default_rng(0)
    images = [generator.standard_normal((1, 3, SIZE, SIZE)).astype(np.float32) for _ in range(2)]
    results: list[list[dict[str, Any]]] = [[] for _ in plans]
    bare: dict[str, Any] = {}
    for attention in ("none", *(name for name in rows if name != "none")):
        model = take_statistics(_network(architecture, attention))
        peers = _peers(target, attention, model, images, folder)
        engines = _ours(target, attention, model, images, folder) | peers
        for plan, result in zip(plans, results, strict=True):
            timed = engines
            if result:
                timed = engines | {"bare": bare["ours"]}
                # The tool that is the fastest on the bare network here is what its tax refers to.
                if (best := result[0]["peer"]) is not None:
                    timed["bare_peer"] = bare[best]
            result.append(_row(attention, time_engines(target, timed, images[0], plan, rounds), list(peers)))
            shown = {key: value for key, value in result[-1].items() if "interval" not in key}
            sys.stdout.write(json.dumps({"threads": plan.threads, **shown}) + "\n")
            sys.stdout.flush()
        bare = bare or engines
    return [{"bare_int8_ms": result[0]["ours_int8_ms"], "rows": result} for result in results]


def time_engines(
    target: Target, engines: Mapping[str, Any], image: Any, plan: TimingPlan, rounds: int
) -> Rounds:
    """Return the median of every round in ms by engine."""
    openers = {
        name: functools.partial(target.open, engine, threads=plan.threads) for name, engine in engines.items()
    }
    return compare_engines(openers, {"input": image}, plan, rounds=rounds).round_p50_ms


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure what attention costs in INT8.")
    parser.add_argument("--target", required=True, choices=("openvino-cpu", "ort-cpu"))
    parser.add_argument("--json", required=True, help="file to write; {threads} in it is replaced")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--model", default="mobilenet_v2", choices=("mobilenet_v2", "efficientnet_lite0"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--quick", action="store_true", help="64 inferences of each engine")
    options = parser.parse_args(arguments)
    if len(options.threads) > 1 and "{threads}" not in options.json:
        parser.error("--json needs {threads} in its name: several results are written")
    torch.set_num_threads(1)
    if options.quick:
        plans, rounds = [TimingPlan.quick(threads=count) for count in options.threads], 8
    else:
        plans = [TimingPlan(min_runs=1024, min_seconds=10.0, threads=count) for count in options.threads]
        rounds = 32
    with tempfile.TemporaryDirectory(prefix="edgeattn-tax-") as folder:
        target = get_target(options.target)
        results = measure(target, options.model, tuple(options.rows), plans, rounds, Path(folder))
    for plan, measured in zip(plans, results, strict=True):
        value = {
            "target": options.target,
            "model": options.model,
            "threads": plan.threads,
            "quick": options.quick,
            "openings": OPENINGS,
            **measured,
            "environment": describe_environment(),
        }
        path = Path(options.json.replace("{threads}", str(plan.threads)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
