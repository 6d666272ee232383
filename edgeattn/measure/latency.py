"""Latency: percentiles of one engine, and the ratio of several measured in alternation.

Absolute times drift with clocks, neighbours and temperature. What is compared is therefore run in one
process in alternating blocks (A B A B ...), and what is quoted is the median over rounds of the ratio of the
blocks' medians, with a bootstrap interval.

Two sessions of one engine differ, too: by up to 3 % on CPUs, for as long as they live, depending on where their memory
lies. So engines are opened several times (`compare_engines`), and the interval holds that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import numpy as np

from edgeattn.errors import RecipeError, close_matches_hint
from edgeattn.measure.statistics import Interval, median_ratio_interval
from edgeattn.targets.base import Feeds, Session, TimingPlan, session_properties

__all__ = [
    "OPENINGS",
    "Latency",
    "LatencyComparison",
    "LatencyRatio",
    "compare_engines",
    "compare_latency",
    "measure_latency",
]

OPENINGS = 4
ROUNDS = 8

Opener = Callable[[], AbstractContextManager[Session]]


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long one inference takes.

    Attributes:
        p50_ms: Median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        mean_ms: Mean.
        runs: Counted inferences.
        threads: Intra-operator threads.
        batch: Images in one inference.
        warmup_runs: Inferences before the counted ones.
        properties: What the session says about how it ran: pinning, precision, clock.
        samples_ns: Every counted inference, in order; kept out of JSON.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    runs: int
    threads: int
    batch: int
    warmup_runs: int
    properties: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    samples_ns: tuple[int, ...] = dataclasses.field(default=(), repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description without the samples."""
        value = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "samples_ns"}
        value["properties"] = dict(self.properties)
        return value


@dataclasses.dataclass(frozen=True)
class LatencyRatio:
    """How much longer one engine takes than the baseline: below 1 is faster.

    Attributes:
        ratio: Median over rounds of p50(engine) / p50(baseline).
        interval: Its 95 % bootstrap interval.
        rounds: The ratio of each round.
    """

    ratio: float
    interval: Interval
    rounds: tuple[float, ...]

    @property
    def speedup(self) -> float:
        """How many times faster than the baseline: 1 / ratio."""
        return 1 / self.ratio

    @property
    def speedup_interval(self) -> Interval:
        """The 95 % interval of `speedup`."""
        return 1 / self.interval[1], 1 / self.interval[0]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return {
            "ratio": self.ratio,
            "interval": list(self.interval),
            "speedup": self.speedup,
            "speedup_interval": list(self.speedup_interval),
            "rounds": list(self.rounds),
        }


@dataclasses.dataclass(frozen=True)
class LatencyComparison:
    """Several engines measured in alternation.

    Attributes:
        baseline: Name of the engine that ratios refer to.
        latencies: Latency by name, over all rounds.
        ratios: Ratio to the baseline by name; the baseline's own is absent.
        round_p50_ms: Median of each round by name.
    """

    baseline: str
    latencies: Mapping[str, Latency]
    ratios: Mapping[str, LatencyRatio]
    round_p50_ms: Mapping[str, tuple[float, ...]]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return {
            "baseline": self.baseline,
            "latencies": {name: latency.to_json() for name, latency in self.latencies.items()},
            "ratios": {name: ratio.to_json() for name, ratio in self.ratios.items()},
            "round_p50_ms": {name: list(medians) for name, medians in self.round_p50_ms.items()},
        }


def measure_latency(session: Session, feeds: Feeds, plan: TimingPlan | None = None) -> Latency:
    """Time one engine.

    Args:
        session: An open engine.
        feeds: Inputs, the first dimension of the first being the batch.
        plan: How long; None means 1,024 inferences or 10 s.

    Raises:
        ModelError: If the feeds are not the engine's.
    """
    plan = plan if plan is not None else TimingPlan()
    return _summarize(session_properties(session), feeds, plan, session.time(feeds, plan))


def compare_engines(
    openers: Mapping[str, Opener],
    feeds: Feeds,
    plan: TimingPlan | None = None,
    *,
    rounds: int = ROUNDS,
    openings: int = OPENINGS,
    baseline: str | None = None,
) -> LatencyComparison:
    """Time several engines in alternation, each over several sessions of it.

    Args:
        openers: By name, what opens an engine.
        feeds: Inputs.
        plan: Counted inferences and seconds for each engine, over all sessions.
        rounds: How often the engines take turns, over all sessions; rounded up to a multiple of `openings`.
        openings: How often each engine is opened.
        baseline: Which one the ratios refer to; None means the first.

    Raises:
        RecipeError: If there are fewer than two engines, no rounds or openings, or the baseline is not among them.
        ModelError: If the feeds are not an engine's.
    """
    plan = plan if plan is not None else TimingPlan()
    if openings < 1:
        raise RecipeError(f"openings is {openings}; expected at least 1.")
    baseline = next(iter(openers), None) if baseline is None else baseline
    part = dataclasses.replace(
        plan, min_runs=math.ceil(plan.min_runs / openings), min_seconds=plan.min_seconds / openings
    )
    parts = []
    for index in range(openings):
        # The other way round every second time: what is opened first gets the better memory.
        order = list(openers) if index % 2 == 0 else list(openers)[::-1]
        with ExitStack() as stack:
            sessions = {name: stack.enter_context(openers[name]()) for name in order}
            turns = math.ceil(rounds / openings)
            parts.append(compare_latency(sessions, feeds, part, rounds=turns, baseline=baseline))
    first = parts[0]
    medians = {name: [value for part in parts for value in part.round_p50_ms[name]] for name in openers}
    return LatencyComparison(
        baseline=first.baseline,
        latencies={
            name: _summarize(
                first.latencies[name].properties,
                feeds,
                plan,
                [sample for part in parts for sample in part.latencies[name].samples_ns],
            )
            for name in openers
        },
        ratios={
            name: _ratio(medians[name], medians[first.baseline]) for name in openers if name != first.baseline
        },
        round_p50_ms={name: tuple(values) for name, values in medians.items()},
    )


def compare_latency(
    sessions: Mapping[str, Session],
    feeds: Feeds,
    plan: TimingPlan | None = None,
    *,
    rounds: int = ROUNDS,
    baseline: str | None = None,
) -> LatencyComparison:
    """Time several engines in alternation, in blocks that add up to `plan`.

    Args:
        sessions: Open engines by name; all take the same feeds.
        feeds: Inputs.
        plan: Counted inferences and seconds for each engine, over all rounds.
        rounds: How often the engines take turns.
        baseline: Which one the ratios refer to; None means the first.

    Raises:
        RecipeError: If there are fewer than two engines, no rounds, or the baseline is not among them.
        ModelError: If the feeds are not an engine's.
    """
    plan = plan if plan is not None else TimingPlan()
    if len(sessions) < 2:
        raise RecipeError(f"Got {len(sessions)} engine to compare; expected at least two.")
    if rounds < 1:
        raise RecipeError(f"rounds is {rounds}; expected at least 1.")
    baseline = next(iter(sessions)) if baseline is None else baseline
    if baseline not in sessions:
        raise RecipeError(f"Unknown baseline {baseline!r}. {close_matches_hint(baseline, sessions)}")

    block = dataclasses.replace(
        plan,
        min_runs=math.ceil(plan.min_runs / rounds),
        min_seconds=plan.min_seconds / rounds,
        # The other engines emptied the caches and let this one's threads sleep, so every block warms up.
        warmup_runs=max(math.ceil(plan.warmup_runs / rounds), min(plan.warmup_runs, 3)),
    )
    samples: dict[str, list[int]] = {name: [] for name in sessions}
    medians: dict[str, list[float]] = {name: [] for name in sessions}
    for index in range(rounds):
        for name, session in sessions.items():
            taken = session.time(
                feeds, dataclasses.replace(block, warmup_runs=plan.warmup_runs) if index == 0 else block
            )
            samples[name].extend(taken)
            medians[name].append(float(np.median(taken)) / 1e6)
    ratios = {name: _ratio(medians[name], medians[baseline]) for name in sessions if name != baseline}
    return LatencyComparison(
        baseline=baseline,
        latencies={
            name: _summarize(session_properties(session), feeds, plan, samples[name])
            for name, session in sessions.items()
        },
        ratios=ratios,
        round_p50_ms={name: tuple(values) for name, values in medians.items()},
    )


def _ratio(medians: Sequence[float], baseline: Sequence[float]) -> LatencyRatio:
    ratios = tuple(mine / other for mine, other in zip(medians, baseline, strict=True))
    return LatencyRatio(float(np.median(ratios)), median_ratio_interval(ratios), ratios)


def _summarize(
    properties: Mapping[str, Any], feeds: Feeds, plan: TimingPlan, samples: Sequence[int]
) -> Latency:
    milliseconds = np.asarray(samples, dtype=np.float64) / 1e6
    p50, p90, p99 = (float(value) for value in np.percentile(milliseconds, (50, 90, 99)))
    return Latency(
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        mean_ms=float(milliseconds.mean()),
        runs=len(samples),
        threads=plan.threads,
        batch=int(next(iter(feeds.values())).shape[0]),
        warmup_runs=plan.warmup_runs,
        properties=properties,
        samples_ns=tuple(int(sample) for sample in samples),
    )
