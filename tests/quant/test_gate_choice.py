"""The choice of policies is the best one there is, by trying all of them."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from edgeattn.quant.gate_choice import GateOption, choose_options

Gates = list[list[GateOption]]

# Few distinct values, so that ties of time and of cost are common.
_options = st.builds(
    GateOption,
    st.sampled_from(["int8", "fixed", "float"]),
    st.integers(-3, 3),
    st.one_of(st.sampled_from([0.0, 0.1, 0.25, 0.5, math.inf]), st.floats(0, 1)),
)
_gates = st.lists(st.lists(_options, min_size=1, max_size=3), max_size=6)


def _rank(gates: Gates, chosen: tuple[GateOption, ...]) -> tuple[int, int, float]:
    changes = sum(option is not options[0] for options, option in zip(gates, chosen, strict=True))
    return sum(item.time for item in chosen), changes, sum((item.cost for item in chosen), 0.0)


@given(_gates, st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_no_assignment_within_the_budget_is_better(gates: Gates, budget: float) -> None:
    every = [_rank(gates, chosen) for chosen in itertools.product(*gates)]
    within = [rank for rank in every if rank[2] <= budget]
    found = choose_options(gates, budget)
    if not within:
        assert found is None
    else:
        assert found is not None
        assert _rank(gates, found) == min(within)


def test_the_known_best_is_found() -> None:
    """Float pays most per cost at the second gate; the first one's default is the best left."""
    gates = [
        [GateOption("int8", 0, 0.1), GateOption("float", -40, 0.9)],
        [GateOption("int8", 0, 0.1), GateOption("fixed", -10, 0.1), GateOption("float", -50, 0.7)],
        [GateOption("int8", 0, 0.2), GateOption("fixed", 0, 0.1), GateOption("float", 30, 0.0)],
    ]
    found = choose_options(gates)
    assert found is not None
    assert [option.policy for option in found] == ["int8", "float", "int8"]
    # A tighter budget is paid for with time where that is the cheapest.
    tight = choose_options(gates, 0.85)
    assert tight is not None
    assert [option.policy for option in tight] == ["int8", "float", "float"]
    assert choose_options(gates, 0.1) is None


def test_a_tie_keeps_the_default_though_another_costs_less() -> None:
    gates = [[GateOption("int8", 0, 0.4), GateOption("fixed", 0, 0.1)]]
    assert choose_options(gates) == (gates[0][0],)
    assert choose_options(gates, 0.2) == (gates[0][1],)


def test_sixty_gates_are_no_slower_than_the_best_change_after_change() -> None:
    gates = [
        [
            GateOption("int8", 0, 0.01 * (n % 7)),
            GateOption("fixed", -(n % 5), 0.013 * (n % 11)),
            GateOption("float", -9, 0.05),
        ]
        for n in range(60)
    ]
    found = choose_options(gates, 2.2)
    assert found is not None
    assert sum(option.cost for option in found) <= 2.2
    greedy = [min(options, key=lambda item: item.cost) for options in gates]
    while True:
        spare = 2.2 - sum(item.cost for item in greedy)
        steps = [
            ((item.time - greedy[n].time) / max(item.cost - greedy[n].cost, 1e-9), n, item)
            for n, options in enumerate(gates)
            for item in options
            if item.time < greedy[n].time and item.cost - greedy[n].cost <= spare
        ]
        if not steps:
            break
        _, place, item = min(steps, key=lambda step: step[:2])
        greedy[place] = item
    assert sum(item.time for item in found) <= sum(item.time for item in greedy)
