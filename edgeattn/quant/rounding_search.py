"""Choose between two integers for every weight of a layer, so that the layer errs least.

Weights interact, so the best choice is a search over all combinations. It begins as Nagel et al. have it in "Up or
Down? Adaptive Rounding for Post-Training Quantization" (arXiv 2004.10568, section 3.3): a rectified sigmoid of one
variable for each weight, with a regularizer that ends at the integers. It is finished greedily: a weight goes to its other
integer while that lowers the error.
"""

from __future__ import annotations

import dataclasses
import math

import torch

__all__ = ["RoundingProblem", "choose_rounding"]

LEARNING_RATE = 0.1
_STRETCH = 1.2  # the rectified sigmoid runs from -0.1 to 1.1, so that it reaches 0 and 1
_WARMUP = 0.2
_SHARPEST, _DULLEST = 20.0, 2.0
_REGULARIZER = 24.0
_LARGEST_LOGIT = 9.0
_GREEDY_PASSES = 10
_LEAST_GAIN = 1e-6
_TINY = 1e-30

Tensor = torch.Tensor


@dataclasses.dataclass(frozen=True)
class RoundingProblem:
    """A layer's weights and the error that their rounding makes.

    The error of a row of integers q for weights x is (q - x) H (q - x)^T + 2 (q - x) b^T.

    Attributes:
        steps: x, weights in steps of their grid (G, O, K).
        nearest: Their nearest integers.
        second: Their second nearest, or the nearest ones where there is no choice.
        moments: H, (G, K, K), positive semidefinite.
        slope: b, (G, O, K).
    """

    steps: Tensor
    nearest: Tensor
    second: Tensor
    moments: Tensor
    slope: Tensor

    def error(self, found: Tensor) -> Tensor:
        """Return the error of each row (G, O), less what it would be for exact weights."""
        off = found - self.steps
        return ((off @ self.moments + 2 * self.slope) * off).sum(2)


def choose_rounding(problem: RoundingProblem, steps: int) -> Tensor:
    """Return one of the two integers for every weight, such that rows err little: none more than its nearest ones.

    Args:
        problem: What to round.
        steps: Of the optimization.
    """
    found = _greedy(problem, _learn_sides(problem, steps))
    better = problem.error(found) < problem.error(problem.nearest)
    return torch.where(better[..., None], found, problem.nearest)


def _learn_sides(problem: RoundingProblem, steps: int) -> Tensor:
    """Learn with Adam; gradients are written out, because the error's is one product of matrices."""
    x, moments = problem.steps, problem.moments
    low, high = torch.minimum(problem.nearest, problem.second), torch.maximum(problem.nearest, problem.second)
    share = (x - low).clamp(0, 1)
    # Such that a weight's own error weighs the same in every layer.
    size = 12 / moments.diagonal(dim1=1, dim2=2).mean(1).clamp_min(_TINY)[:, None, None]
    edge = (_STRETCH - 1) / 2
    logits = torch.logit((share + edge) / _STRETCH).clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    first, second = torch.zeros_like(logits), torch.zeros_like(logits)
    for step in range(steps):
        sigmoid = logits.sigmoid()
        stretched = sigmoid * _STRETCH - edge
        side = stretched.clamp(0, 1)
        gradient = 2 * ((low + side * (high - low) - x) @ moments + problem.slope) * size
        if step >= _WARMUP * steps:
            done = (step / steps - _WARMUP) / (1 - _WARMUP)
            power = _DULLEST + (_SHARPEST - _DULLEST) * (1 + math.cos(math.pi * done)) / 2
            off = 2 * side - 1
            gradient -= _REGULARIZER * power * off.sign() * off.abs() ** (power - 1)
        gradient *= _STRETCH * sigmoid * (1 - sigmoid) * ((stretched > 0) & (stretched < 1))
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.01)
        scaled = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
        logits -= LEARNING_RATE * scaled
    return torch.where(logits > 0, high, low)


def _greedy(problem: RoundingProblem, start: Tensor) -> Tensor:
    """Move weights to their other neighbour, one column after another, as long as that lowers the error."""
    moments, both = problem.moments, problem.nearest + problem.second
    found = start.clone()
    rest = (found - problem.steps) @ moments + problem.slope
    own = moments.diagonal(dim1=1, dim2=2)
    for _ in range(_GREEDY_PASSES):
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
    return found
