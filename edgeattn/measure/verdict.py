"""Verdict: whether measured figures meet the accepted bounds, and how sure that is.

The point estimate decides: a bound means what it says, and the same figures give the same verdict whatever
their interval. Each reason then says how sure it is, and where the interval reaches across the bound, about
how much more would have to be measured to tell.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from edgeattn.errors import RecipeError
from edgeattn.measure.latency import LatencyRatio
from edgeattn.measure.parity import Parity
from edgeattn.measure.statistics import Interval, z_value

__all__ = ["AcceptBounds", "Reason", "Verdict", "judge"]

_ENOUGH = 10_000_000
"""More images than this are not worth naming: the figure sits on its bound."""


@dataclasses.dataclass(frozen=True)
class AcceptBounds:
    """What is accepted; None means that it does not matter.

    Attributes:
        top1_delta_max: Largest accepted loss of top-1 against float, in [0, 1]; a gain always passes.
        agreement_min: Smallest accepted agreement with float, in [0, 1].
        sqnr_db_min: Smallest accepted SQNR of the logits.
        speedup_min: Smallest accepted p50(float) / p50(INT8).
    """

    top1_delta_max: float | None = None
    agreement_min: float | None = None
    sqnr_db_min: float | None = None
    speedup_min: float | None = None

    def __post_init__(self) -> None:
        """Check that every bound is a number in its range.

        Raises:
            RecipeError: If one is not.
        """
        for field, low, high in (
            ("top1_delta_max", 0.0, 1.0),
            ("agreement_min", 0.0, 1.0),
            ("sqnr_db_min", -math.inf, math.inf),
            ("speedup_min", 0.0, math.inf),
        ):
            value = getattr(self, field)
            if value is not None and (math.isnan(value) or not low <= value <= high):
                raise RecipeError(f"accept.{field} is {value!r}; expected a number in [{low:g}, {high:g}].")


@dataclasses.dataclass(frozen=True)
class Reason:
    """One bound, judged.

    Attributes:
        metric: ``"top1_delta"``, ``"agreement"``, ``"sqnr_db"`` or ``"speedup"``.
        bound: What was accepted.
        measured: What was measured; None if it was not.
        passed: Whether the point estimate meets the bound.
        certain: Whether its whole 95 % interval lies on that side; None where there is no interval.
        text: The same for people, with figures.
    """

    metric: str
    bound: float
    measured: float | None
    passed: bool
    certain: bool | None
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description; an infinite figure becomes None."""
        value = dataclasses.asdict(self)
        if self.measured is not None and not math.isfinite(self.measured):
            value["measured"] = None
        return value


@dataclasses.dataclass(frozen=True)
class Verdict:
    """All bounds, judged: passed if every one is."""

    passed: bool
    reasons: tuple[Reason, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return {
            "verdict": "pass" if self.passed else "fail",
            "reasons": [reason.to_json() for reason in self.reasons],
        }


def judge(
    bounds: AcceptBounds, parity: Parity | None = None, speedup: LatencyRatio | float | None = None
) -> Verdict:
    """Judge what was measured against what is accepted.

    A bound whose figure was not measured fails: nothing passes unseen.

    Args:
        bounds: What is accepted.
        parity: Of the INT8 engine against float.
        speedup: The INT8 engine's latency ratio to the float engine, or the speedup itself.
    """
    reasons: list[Reason] = []
    n = parity.n if parity is not None else 0
    if bounds.top1_delta_max is not None:
        delta = parity.top1_delta if parity is not None else None
        interval = parity.top1_delta_interval if parity is not None else None
        changed = (parity.top1_changed_share or 0.0) if parity is not None else 0.0
        variance = changed - (delta or 0.0) ** 2
        # A loss of at most `max` is a delta of at least `-max`.
        reasons.append(
            _reason("top1_delta", -bounds.top1_delta_max, delta, interval, n, "images", variance, "no labels")
        )
    if bounds.agreement_min is not None:
        share = parity.agreement if parity is not None else None
        interval = parity.agreement_interval if parity is not None else None
        # Wilson's interval leaves a bound out as soon as the share is z standard errors of the bound away.
        variance = bounds.agreement_min * (1 - bounds.agreement_min)
        reasons.append(_reason("agreement", bounds.agreement_min, share, interval, n, "images", variance))
    if bounds.sqnr_db_min is not None:
        ratio_db = parity.sqnr_db if parity is not None else None
        reasons.append(_reason("sqnr_db", bounds.sqnr_db_min, ratio_db, None, n, "images", 0.0))
    if bounds.speedup_min is not None:
        reasons.append(_speedup_reason(bounds.speedup_min, speedup))
    return Verdict(all(reason.passed for reason in reasons), tuple(reasons))


def _speedup_reason(bound: float, speedup: LatencyRatio | float | None) -> Reason:
    if not isinstance(speedup, LatencyRatio):
        return _reason("speedup", bound, speedup, None, 0, "rounds", 0.0)
    rounds = len(speedup.rounds)
    low, high = speedup.speedup_interval
    # The interval's half-width stands for the rounds' spread: it shrinks with the root of their number.
    variance = rounds * ((high - low) / 2 / z_value(0.95)) ** 2
    return _reason("speedup", bound, speedup.speedup, (low, high), rounds, "rounds", variance)


def _reason(
    metric: str,
    bound: float,
    measured: float | None,
    interval: Interval | None,
    n: int,
    unit: str,
    variance: float,
    why_missing: str = "it was not measured",
) -> Reason:
    wanted = f"at least {_figure(metric, bound)}"
    if measured is None:
        return Reason(metric, bound, None, False, None, f"{metric}: {why_missing}; accepted is {wanted}")
    passed = measured >= bound
    text = f"{metric} {_figure(metric, measured)}"
    if n:
        text += f" over {n} {unit}"
    text += f", {'meets' if passed else 'misses'} {wanted}"
    if interval is None:
        return Reason(metric, bound, measured, passed, None, text)
    low, high = interval
    certain = not low < bound <= high
    text += f" (95 % interval {_figure(metric, low)} to {_figure(metric, high)}"
    if not certain:
        text += f"; cannot tell with n = {n}: {_needed(measured - bound, variance, n, unit)}"
    return Reason(metric, bound, measured, passed, certain, text + ")")


def _needed(distance: float, variance: float, n: int, unit: str) -> str:
    """Say about how many are needed for the interval to clear the bound at this distance."""
    if distance == 0:
        return "the figure sits on the bound"
    z = z_value(0.95)
    # Where nothing varied yet, the interval of n outcomes is about z / n wide.
    needed = math.ceil(z**2 * variance / distance**2 if variance > 0 else z / abs(distance))
    if needed > _ENOUGH:
        return "the figure all but sits on the bound"
    return f"needs about {_rounded(max(needed, n + 1))} {unit}"


def _rounded(count: int) -> int:
    """Round up to two digits: the number is an estimate and should look like one."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return math.ceil(count / step) * step


def _figure(metric: str, value: float) -> str:
    if metric == "top1_delta":
        return f"{100 * value:+.2f} points"
    if metric == "agreement":
        return f"{100 * value:.2f} %"
    return f"{value:.2f} dB" if metric == "sqnr_db" else f"{value:.2f}x"
