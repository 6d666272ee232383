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
    slope = 0.3 * torch.randn(1, rows, size, generator=generator)
    return RoundingProblem(steps, nearest, 2 * low + 1 - nearest, moments, slope)


def test_rows_come_near_the_best_of_all_combinations() -> None:
    small = problem(24, 8)
    found = small.error(choose_rounding(small, 100))
    nearest = small.error(small.nearest)
    best = nearest.clone()
    for sides in itertools.product([False, True], repeat=8):
        best = torch.minimum(best, small.error(torch.where(torch.tensor(sides), small.second, small.nearest)))
    assert (found >= best - 1e-3).all()
    assert ((found - best).sum() < 0.1 * (nearest - best).sum()).item()


def test_no_row_is_worse_than_its_nearest_integers_and_learning_beats_greed() -> None:
    large = problem(32, 96, 1)
    nearest = large.error(large.nearest)
    greedy, learned = (large.error(choose_rounding(large, steps)) for steps in (0, 100))
    assert (learned <= nearest).all()
    assert greedy.sum() < 0.6 * nearest.sum()
    assert learned.sum() < greedy.sum()


def test_a_weight_without_a_choice_keeps_its_integer() -> None:
    free = problem(8, 12, 2)
    bound = RoundingProblem(free.steps, free.nearest, free.nearest, free.moments, free.slope)
    assert torch.equal(choose_rounding(bound, 50), free.nearest)
    is_free = choose_rounding(free, 50) != free.nearest
    assert is_free.any()
