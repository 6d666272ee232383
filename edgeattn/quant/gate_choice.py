"""Which policy each gate takes: the least time within an accuracy budget, exactly.

Gates are independent items of a knapsack of which each must take one of a few options. Times are whole numbers, so
that equal sums are equal; of the fastest assignments the one nearest to the default is taken, then the most accurate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from edgeattn.quant.config import GatePolicy

__all__ = ["GateOption", "choose_options"]

_ROUNDING = 1e-9
"""By how much the order of additions may move a sum of costs."""


@dataclasses.dataclass(frozen=True)
class GateOption:
    """One policy of one gate.

    Attributes:
        policy: The policy.
        time: Change of the network's latency against the default policy, in millionths of it; below 0 is faster.
        cost: Share of the accuracy budget that it takes, at least 0; infinite where it must not be taken.
    """

    policy: GatePolicy
    time: int
    cost: float


@dataclasses.dataclass(frozen=True)
class _State:
    """An assignment to the first gates: total time, options that are not the default, total cost."""

    time: int
    changes: int
    cost: float
    last: int
    before: _State | None


def choose_options(
    gates: Sequence[Sequence[GateOption]], budget: float = 1.0
) -> tuple[GateOption, ...] | None:
    """Return an option for each gate: least time with costs that sum to at most `budget`.

    Exact: assignments to the first gates are dropped only where another one is no slower, no further from the default
    and no costlier.

    Args:
        gates: Options of each gate, the default first.
        budget: Largest sum of costs.

    Returns:
        The options in the order of `gates`; None where even the cheapest ones cost more.
    """
    least = [min(option.cost for option in options) for options in gates]
    states = [_State(0, 0, 0.0, 0, None)]
    for number, options in enumerate(gates):
        ahead = sum(least[number + 1 :])
        limit = budget * (1 + _ROUNDING) - ahead
        states = _undominated(
            _State(state.time + item.time, state.changes + (place > 0), state.cost + item.cost, place, state)
            for state in states
            for place, item in enumerate(options)
            if state.cost + item.cost <= limit
        )
    best = next((state for state in states if state.cost <= budget), None)
    if best is None:
        return None
    places: list[int] = []
    while best.before is not None:
        places.append(best.last)
        best = best.before
    return tuple(options[place] for options, place in zip(gates, reversed(places), strict=True))


def _undominated(states: Iterable[_State]) -> list[_State]:
    """Return the states, fastest first, each cheaper than all before it."""
    kept: list[_State] = []
    for state in sorted(states, key=lambda item: (item.time, item.changes, item.cost)):
        if not kept or state.cost < kept[-1].cost:
            kept.append(state)
    return kept
