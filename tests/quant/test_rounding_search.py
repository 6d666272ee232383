"""The search for roundings comes near the best of all combinations, and never behind the nearest integers."""

from __future__ import annotations

import itertools

import torch

from edgeattn.quant.rounding_search import RoundingProblem, choose_rounding


def problem(rows: int, size: int, seed: int = 0) -> RoundingProblem:
    """Weights of a layer whose inputs vary together, as maps after a ReLU do."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(256, 3, generator=generator) @ torch.randn(3, size, generator=generator)
    inputs += 0.3 * torch.randn(256, size, generator=generator)
    steps = 4 * torch.randn(1, rows, size, generator=generator)
    low, nearest = steps.floor(), steps.round()
    moments = (inputs.T @ inputs / len(inputs))[None]
    return RoundingProblem(steps, nearest, 2 * low + 1 - nearest, moments)


def test_rows_come_near_the_best_of_all_combinations() -> None:
    small = problem(24, 8)
    found = small.error(choose_rounding(small))
    nearest = small.error(small.nearest)
    best = nearest.clone()
    for sides in itertools.product([False, True], repeat=8):
        best = torch.minimum(best, small.error(torch.where(torch.tensor(sides), small.second, small.nearest)))
    assert (found >= best - 1e-3).all()
    assert ((found - best).sum() < 0.2 * (nearest - best).sum()).item()


def test_no_row_is_worse_than_its_nearest_integers_and_all_together_err_far_less() -> None:
    large = problem(32, 96, 1)
    nearest, found = large.error(large.nearest), large.error(choose_rounding(large))
    assert (found <= nearest).all()
    assert found.sum() < 0.2 * nearest.sum()


def test_a_weight_without_a_choice_keeps_its_integer() -> None:
    free = problem(8, 12, 2)
    bound = RoundingProblem(free.steps, free.nearest, free.nearest, free.moments)
    assert torch.equal(choose_rounding(bound), free.nearest)
    is_free = choose_rounding(free) != free.nearest
    assert is_free.any()
