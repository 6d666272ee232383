"""Choose between two integers for every weight of a layer, so that the layer errs least.

Weights interact, so the best choice is a search over all combinations. It begins at the nearest integers and goes downhill:
a weight goes to its other integer while that lowers the error.
"""

from __future__ import annotations

import dataclasses

import torch

__all__ = ["RoundingProblem", "choose_rounding"]

_PASSES = 10
_LEAST_GAIN = 1e-6
"""Of what a weight costs that errs by a step alone."""

Tensor = torch.Tensor


@dataclasses.dataclass(frozen=True)
class RoundingProblem:
    """A layer's weights and the error that their rounding makes.

    The error of a row of integers q for weights x is (q - x) H (q - x)^T.

    Attributes:
        steps: x, weights in steps of their grid (G, O, K).
        nearest: Their nearest integers.
        second: Their second nearest, or the nearest ones where there is no choice.
        moments: H, (G, K, K), positive semidefinite.
    """

    steps: Tensor
    nearest: Tensor
    second: Tensor
    moments: Tensor

    def error(self, found: Tensor) -> Tensor:
        """Return the error of each row (G, O)."""
        off = found - self.steps
        return ((off @ self.moments) * off).sum(2)


def choose_rounding(problem: RoundingProblem) -> Tensor:
    """Return one of the two integers for every weight, such that no row errs more than with its nearest ones."""
    moments, both = problem.moments, problem.nearest + problem.second
    found = problem.nearest.clone()
    rest = (found - problem.steps) @ moments
    own = moments.diagonal(dim1=1, dim2=2)
    for _ in range(_PASSES):
        is_done = True
        for column in range(found.shape[2]):
            move = both[..., column] - 2 * found[..., column]
            gain = 2 * move * rest[..., column] + move.square() * own[:, None, column]
            move = move * (gain < -_LEAST_GAIN * own[:, None, column])
            if bool(move.any()):
                is_done = False
                found[..., column] += move
                rest += move[..., None] * moments[:, None, column]
        if is_done:
            break
    # Sums in float32 drift over many moves.
    better = problem.error(found) < problem.error(problem.nearest)
    return torch.where(better[..., None], found, problem.nearest)
