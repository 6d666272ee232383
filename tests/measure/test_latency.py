"""Latency: what is counted and how engines alternate, on sessions whose clock the test holds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from edgeattn.errors import RecipeError
from edgeattn.measure import compare_engines, compare_latency, measure_latency
from edgeattn.targets.base import Feeds, LayerTime, Outputs, Session, TimingPlan

FEEDS = {"input": np.zeros((4, 3, 2, 2), np.float32)}


class ClockedSession:
    """Takes `milliseconds` an inference, slower by `drift` in each later block."""

    def __init__(self, milliseconds: float, calls: list[str] | None = None, name: str = "") -> None:
        self.milliseconds = milliseconds
        self.calls = calls if calls is not None else []
        self.name = name
        self.plans: list[TimingPlan] = []
        self.properties = {"clock": "the test's"}

    def infer(self, feeds: Feeds) -> Outputs:
        raise NotImplementedError

    def time(self, feeds: Feeds, plan: TimingPlan) -> Sequence[int]:
        self.calls.append(self.name)
        self.plans.append(plan)
        drift = 1 + len(self.plans)
        return [int(self.milliseconds * drift * 1e6)] * plan.min_runs

    def layer_times(self, feeds: Feeds, runs: int = 50) -> Sequence[LayerTime]:
        return []


class ListedSession(ClockedSession):
    def time(self, feeds: Feeds, plan: TimingPlan) -> Sequence[int]:
        return [n * 1_000_000 for n in range(1, 102)]


def test_percentiles() -> None:
    latency = measure_latency(ListedSession(0), FEEDS, TimingPlan(threads=2))
    assert (latency.p50_ms, latency.p90_ms, latency.p99_ms) == (51.0, 91.0, 100.0)
    assert latency.mean_ms == 51.0
    assert (latency.runs, latency.threads, latency.batch, latency.warmup_runs) == (101, 2, 4, 20)
    assert latency.properties == {"clock": "the test's"}


def test_json_has_no_samples() -> None:
    latency = measure_latency(ListedSession(0), FEEDS)
    assert len(latency.samples_ns) == 101
    value = json.loads(json.dumps(latency.to_json(), allow_nan=False))
    assert "samples_ns" not in value
    assert {"p50_ms", "p90_ms", "p99_ms", "runs", "threads", "batch"} <= set(value)


def test_engines_take_turns_and_drift_cancels() -> None:
    calls: list[str] = []
    sessions = {name: ClockedSession(ms, calls, name) for name, ms in (("fp32", 2.0), ("int8", 0.5))}
    plan = TimingPlan(warmup_runs=20, min_runs=10, min_seconds=8.0)
    comparison = compare_latency(sessions, FEEDS, plan, rounds=4)
    assert calls == ["fp32", "int8"] * 4
    # Each block got slower, and the ratio did not move.
    assert comparison.round_p50_ms["fp32"] == (4.0, 6.0, 8.0, 10.0)
    ratio = comparison.ratios["int8"]
    assert ratio.rounds == (0.25,) * 4
    assert (ratio.ratio, ratio.interval) == (0.25, (0.25, 0.25))
    assert (ratio.speedup, ratio.speedup_interval) == (4.0, (4.0, 4.0))
    assert comparison.baseline == "fp32"
    assert set(comparison.ratios) == {"int8"}
    # The blocks add up to at least the plan, and each warms up.
    blocks = sessions["int8"].plans
    assert [block.min_runs for block in blocks] == [3] * 4
    assert sum(block.min_seconds for block in blocks) == plan.min_seconds
    assert [block.warmup_runs for block in blocks] == [20, 5, 5, 5]
    assert comparison.latencies["int8"].runs == 12
    json.dumps(comparison.to_json(), allow_nan=False)


def test_the_baseline_can_be_chosen() -> None:
    sessions = {"a": ClockedSession(1.0), "b": ClockedSession(2.0), "c": ClockedSession(4.0)}
    comparison = compare_latency(sessions, FEEDS, TimingPlan.quick(), rounds=2, baseline="b")
    assert {name: ratio.ratio for name, ratio in comparison.ratios.items()} == {"a": 0.5, "c": 2.0}


def test_bad_requests_are_refused() -> None:
    sessions = {"int8": ClockedSession(1.0), "fp32": ClockedSession(2.0)}
    with pytest.raises(RecipeError, match="at least two"):
        compare_latency({"int8": sessions["int8"]}, FEEDS)
    with pytest.raises(RecipeError, match="rounds"):
        compare_latency(sessions, FEEDS, rounds=0)
    with pytest.raises(RecipeError, match="Did you mean 'fp32'"):
        compare_latency(sessions, FEEDS, baseline="fp23")


class Opened:
    """Notes when sessions of an engine are opened and closed; each is slower than the one before."""

    def __init__(self, milliseconds: float, events: list[str], name: str) -> None:
        self.milliseconds, self.events, self.name = milliseconds, events, name
        self.count = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Session]:
        self.count += 1
        self.events.append(f"open {self.name}")
        yield ClockedSession(self.milliseconds * self.count, self.events, self.name)
        self.events.append(f"close {self.name}")


def test_every_engine_is_opened_several_times_in_both_orders() -> None:
    events: list[str] = []
    openers = {name: Opened(ms, events, name) for name, ms in (("fp32", 2.0), ("int8", 0.5))}
    plan = TimingPlan(warmup_runs=20, min_runs=10, min_seconds=8.0)
    comparison = compare_engines(openers, FEEDS, plan, rounds=4, openings=2)
    first = ["open fp32", "open int8", "fp32", "int8", "fp32", "int8", "close int8", "close fp32"]
    second = ["open int8", "open fp32", "int8", "fp32", "int8", "fp32", "close fp32", "close int8"]
    assert events == first + second
    # Two sessions of two rounds each; the clock of a session drifts, and the second is slower by itself.
    assert comparison.round_p50_ms["fp32"] == (4.0, 6.0, 8.0, 12.0)
    assert comparison.ratios["int8"].rounds == (0.25,) * 4
    assert comparison.latencies["int8"].runs == 12
    assert comparison.latencies["int8"].p50_ms == 1.75
    assert comparison.latencies["int8"].properties == {"clock": "the test's"}
    json.dumps(comparison.to_json(), allow_nan=False)


def test_sessions_that_differ_widen_the_interval() -> None:
    class Moody(Opened):
        """Every second session is a tenth slower, as where its memory lies badly."""

        @contextlib.contextmanager
        def __call__(self) -> Iterator[Session]:
            self.count += 1
            yield ClockedSession(1.1 if self.count % 2 else 1.0)

    openers = {"fp32": Moody(1.0, [], "fp32"), "int8": lambda: contextlib.nullcontext(ClockedSession(0.5))}
    once = compare_engines(openers, FEEDS, TimingPlan.quick(), rounds=8, openings=1).ratios["int8"]
    often = compare_engines(openers, FEEDS, TimingPlan.quick(), rounds=8, openings=4).ratios["int8"]
    assert once.interval == pytest.approx((1 / 2.2, 1 / 2.2))
    assert often.interval == pytest.approx((1 / 2.2, 1 / 2))


def test_bad_requests_about_openings_are_refused() -> None:
    openers = {name: Opened(1.0, [], name) for name in ("a", "b")}
    with pytest.raises(RecipeError, match="openings"):
        compare_engines(openers, FEEDS, openings=0)
    with pytest.raises(RecipeError, match="rounds"):
        compare_engines(openers, FEEDS, rounds=0)
    with pytest.raises(RecipeError, match="Unknown baseline"):
        compare_engines(openers, FEEDS, baseline="c")
    with pytest.raises(RecipeError, match="at least two"):
        compare_engines({"a": openers["a"]}, FEEDS)
    with pytest.raises(RecipeError, match="at least two"):
        compare_engines({}, FEEDS)
