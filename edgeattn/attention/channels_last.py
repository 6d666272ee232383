"""Means and gates of maps in channels-last order, as training on a CPU computes them fast.

PyTorch's CPU sums over the rows or columns of an (N, C, H, W) tensor take 5 to 15 times as long when its memory is in
channels-last order as those of its (N, H, W, C) view: the result is laid out in the other order, which leaves no
contiguous run to vectorize. A small network with Coordinate Attention spends an eighth of its training step in them,
half of that in the gates' gradients.

Where something watches or records what is computed (hooks on functions, traces, exports), the plain operations run.
Values and gradients are the same up to the order of float sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["gate_map", "mean_over"]

_TO_NHWC = (0, 2, 3, 1)
_TO_NCHW = (0, 3, 1, 2)


def mean_over(x: Tensor, axis: int) -> Tensor:
    """Return ``x.mean(axis, keepdim=True)``.

    Args:
        x: Shape (N, C, H, W).
        axis: 2 for the mean over rows, (N, C, 1, W); 3 for that over columns, (N, C, H, 1).
    """
    if not _takes_fast_path(x):
        return x.mean(axis, keepdim=True)
    return x.permute(_TO_NHWC).mean(axis - 1, keepdim=True).permute(_TO_NCHW)


def gate_map(x: Tensor, gate_w: Tensor, gate_h: Tensor) -> Tensor:
    """Return ``x * gate_w * gate_h``.

    Args:
        x: Shape (N, C, H, W).
        gate_w: A factor for each column, shape (N, C, 1, W).
        gate_h: A factor for each row, shape (N, C, H, 1).
    """
    if not (_takes_fast_path(x) and torch.is_grad_enabled()):
        return x * gate_w * gate_h
    product: Tensor = _GatedMap.apply(x, gate_w, gate_h)  # type: ignore[no-untyped-call]
    return product


def _takes_fast_path(x: object) -> bool:
    # The type leaves out the stand-ins of exports and symbolic traces.
    return (
        type(x) is Tensor
        and x.dim() == 4
        and x.device.type == "cpu"
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
        and torch._C._len_torch_function_stack() == 0
        and torch._C._get_tracing_state() is None
    )


class _GatedMap(torch.autograd.Function):
    """The product, with sums over (N, H, W, C) views in the gradients of the gates."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_w: Tensor, gate_h: Tensor) -> Tensor:
        half = x * gate_w
        ctx.save_for_backward(x, half, gate_w, gate_h)
        return half * gate_h

    @staticmethod
    @once_differentiable  # `half` is an intermediate: its own gradient is not recorded
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, half, gate_w, gate_h = ctx.saved_tensors
        of_half = gradient * gate_h
        return of_half * gate_w, _sum_over(of_half * x, 2), _sum_over(gradient * half, 3)


def _sum_over(x: Tensor, axis: int) -> Tensor:
    return x.permute(_TO_NHWC).sum(axis - 1, keepdim=True).permute(_TO_NCHW)
