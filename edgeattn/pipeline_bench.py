"""Engines that people bring, timed against each other."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import RecipeError, TargetUnavailable
from edgeattn.measure import compare_engines, measure_latency
from edgeattn.targets import TimingPlan, get_target, load_engine

__all__ = ["bench_engines"]


def bench_engines(
    engines: Sequence[Path], target: str, versus: str | None, plan: TimingPlan
) -> dict[str, Any]:
    """Time engines of one target in alternation, over several sessions of each.

    Args:
        engines: Engine files with their manifests.
        target: The target that built them.
        versus: Path of the engine that ratios refer to; None means the first.
        plan: How long.

    Raises:
        RecipeError: If an engine belongs to another target, or `versus` is not among them.
    """
    runtime = get_target(target)
    available = runtime.probe()
    if not available.can_run:
        raise TargetUnavailable(f"{target} cannot run here: {available.reason} {available.install}".rstrip())
    loaded = {str(path): load_engine(path) for path in engines}
    for path, engine in loaded.items():
        if engine.target != target:
            raise RecipeError(
                f"{path} was built by {engine.target}, not {target}. Pass --target {engine.target}."
            )
    if versus is not None and versus not in loaded:
        loaded[versus] = load_engine(Path(versus))
    first = next(iter(loaded.values()))
    if any(engine.inputs[0].shape != first.inputs[0].shape for engine in loaded.values()):
        raise RecipeError("The engines take inputs of different shapes; compare like with like.")
    sample = np.random.default_rng(0).standard_normal(first.inputs[0].shape).astype(np.float32)
    feeds = {first.inputs[0].name: sample}
    openers = {
        name: functools.partial(runtime.open, engine, threads=plan.threads) for name, engine in loaded.items()
    }
    if len(openers) > 1:
        comparison = compare_engines(openers, feeds, plan, baseline=versus)
        return {"target": target, **comparison.to_json()}
    (name, opener), *_ = openers.items()
    with opener() as session:
        latency = measure_latency(session, feeds, plan)
    return {"target": target, "baseline": name, "latencies": {name: latency.to_json()}, "ratios": {}}
