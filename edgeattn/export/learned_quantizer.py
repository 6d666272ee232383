"""A quantizer whose range is learned with the weights.

The gradients are those of Esser et al., "Learned Step Size Quantization" (arXiv:1902.08153), for the range's limit in
place of the step. Written with few passes over the data: with NNCF's quantizers, and with torch's
``_fake_quantize_learnable_per_tensor_affine``, three to six times slower for activations on a CPU, the quantizers take
half of a training step of a small network.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["LearnedQuantizer"]

_LEAST_LIMIT = 1e-16


class LearnedQuantizer(nn.Module):
    """Symmetric fake quantization to integers from `low` to `high`, with a zero point of 0.

    Args:
        limits: What `high` stands for, one value or one for each channel (the first axis) of a weight.
        low: Least integer.
        high: Greatest integer, above 0.
        rank: Number of dimensions of a weight with limits by channel; 1 for a single limit.

    Attributes:
        limit: The learned limits, shape (1,) or (channels, 1, ...); their sign means nothing.
    """

    def __init__(self, limits: NDArray[np.float64], low: int, high: int, *, rank: int = 1) -> None:
        super().__init__()
        values = torch.from_numpy(limits.astype(np.float32))
        self.limit = nn.Parameter(values.reshape((-1,) + (1,) * (rank - 1)))
        self.low, self.high = low, high

    def forward(self, value: Tensor) -> Tensor:
        """Quantize and dequantize `value`: any shape, or a weight with the limits' channels first."""
        result: Tensor = _LearnedGrid.apply(value, self.limit, self.low, self.high)  # type: ignore[no-untyped-call]
        return result


class _LearnedGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, limit: Tensor, low: int, high: int) -> Tensor:
        step = limit.abs().clamp_(min=_LEAST_LIMIT).div_(high)
        steps = value / step
        integers = steps.round().clamp_(low, high)
        ctx.save_for_backward(steps, integers, limit)
        ctx.low, ctx.high = low, high
        return integers * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        steps, integers, limit = ctx.saved_tensors
        # What is rounded into the range is inside.
        passed = torch.ops.aten.hardtanh_backward(gradient, steps, ctx.low - 0.5, ctx.high + 0.5)
        if not ctx.needs_input_grad[1]:
            return passed, None, None, None
        if limit.numel() > 1:
            along = (gradient * integers - passed * steps).flatten(1).sum(1)
        elif gradient.is_contiguous() and steps.is_contiguous():
            along = _inner(gradient, integers) - _inner(passed, steps)
        else:
            along = (gradient * integers).sum() - (passed * steps).sum()
        return passed, along.reshape(limit.shape) * (limit.sign() / ctx.high), None, None


def _inner(left: Tensor, right: Tensor) -> Tensor:
    return torch.dot(left.view(-1), right.view(-1))
