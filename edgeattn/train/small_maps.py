"""Convolutions of maps of a few pixels, as training on a CPU computes them fast.

Mobile networks on small images end in maps of 1x1 to 4x4 pixels. There PyTorch's CPU convolutions are slow:

* Where a map is smaller than the kernel, oneDNN has no kernel of its own for the weights' gradient of a depthwise
  convolution and falls back to one matrix product for each image and channel (``x64:gemm:jit`` in what
  ``ONEDNN_VERBOSE=1`` prints): 480 channels of 2x2 pixels take nine times as long as a sum for each tap.
* A pointwise convolution reorders its weights at every call; a matrix product of the same numbers does not, and takes
  half the time.

Values and gradients are those of `torch.conv2d`, up to the order of float sums.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["conv2d", "use_small_map_kernels"]

_MOST_PIXELS = 16
"""Of a map whose pointwise convolution is a matrix product: beyond, oneDNN's blocking wins."""
_MOST_PAIRS = 625
"""Of a result and a pixel, in a depthwise convolution whose weights' gradient is computed here: at 5x5 pixels it takes
a third of oneDNN's time, at 6x6 as long."""
_PLAIN = ((1, 1), (0, 0))
"""Stride and padding."""


@contextlib.contextmanager
def use_small_map_kernels(model: nn.Module) -> Iterator[None]:
    """Let the convolution modules of a model compute small maps the fast way.

    A module that runs hooks on `torch.conv2d` sees that function as before; one that can run another in its place has
    ``forward.convolution`` (`edgeattn.export.replayed_hooks`).
    """
    # A TorchFunctionMode would reach functional calls too, but every function and property of a tensor runs through
    # it: a sixth of a training step of a small network.
    modules = [
        module
        for module in model.modules()
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and "forward" not in vars(module)
    ]
    forward: Any = model.forward
    replaces = hasattr(forward, "convolution")
    before = forward.convolution if replaces else None
    try:
        for module in modules:
            module.forward = _forward_of(module)  # type: ignore[assignment,method-assign]
        if replaces:
            forward.convolution = conv2d
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)
        if replaces:
            forward.convolution = before


def _forward_of(module: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    def forward(input: Tensor) -> Tensor:
        # Who watches functions must see this one by its name.
        watched = torch._C._len_torch_function_stack() > 0
        function = torch.conv2d if watched else conv2d
        settings = (module.stride, module.padding, module.dilation, module.groups)
        return function(input, module.weight, module.bias, *settings)

    return forward


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Compute `torch.conv2d`; its arguments and errors.

    The result of a pointwise convolution of a small map is in channels-last order, whatever the input's.
    """
    usual = input.dim() == 4 and input.device.type == "cpu" and not isinstance(padding, str)
    if usual and _pair(dilation) == (1, 1):
        height, width = input.shape[2:]
        pointwise = groups == 1 and weight.shape[2:] == (1, 1) and (_pair(stride), _pair(padding)) == _PLAIN
        if pointwise and height * width <= _MOST_PIXELS:
            return F.linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        depthwise = weight.shape[1] == 1 and groups == weight.shape[0] == input.shape[1]
        small = height < weight.shape[2] or width < weight.shape[3]
        few = (height * width) ** 2 <= _MOST_PAIRS * math.prod(_pair(stride))
        if depthwise and small and few and weight.requires_grad and torch.is_grad_enabled():
            product = _small_depthwise(input, weight, _pair(stride), _pair(padding))
            return product if bias is None else product + bias[:, None, None]
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _pair(value: int | Sequence[int] | str) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, *rest = (int(item) for item in value)
    return first, rest[0] if rest else first


def _small_depthwise(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    same_size = tuple(weight.shape[2:]) == (2 * padding[0] + 1, 2 * padding[1] + 1)
    if same_size and x.shape[2:] == (1, 1):  # one tap lies on the map
        return x * weight[:, 0, padding[0], padding[1]][:, None, None]
    result: Tensor = _SmallDepthwise.apply(x, weight, stride, padding)  # type: ignore[no-untyped-call]
    return result


class _SmallDepthwise(torch.autograd.Function):
    """A depthwise convolution whose weights' gradient is one sum for each tap of the kernel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = torch.ops.aten.convolution_backward(
                *(gradient, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), len(weight)),
                (True, False, False),
            )[0]
        if ctx.needs_input_grad[1]:
            of_weight = _gradient_of_taps(gradient, x, weight, ctx.stride, ctx.padding)
        return of_x, of_weight, None, None


def _gradient_of_taps(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Sum the products of all results and all pixels over the batch, then those that belong to a tap."""
    batch, channels, height, width = x.shape
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    sizes = ((int(gradient.shape[2]), int(gradient.shape[3])), (height, width))
    results = gradient.permute(0, 2, 3, 1).reshape(batch, -1, 1, channels)
    pixels = x.permute(0, 2, 3, 1).reshape(batch, 1, -1, channels)
    pairs = (results * pixels).sum(0).reshape(-1, channels)
    taps = pairs.new_zeros(kernel[0] * kernel[1] + 1, channels)  # the last: pairs that no tap joins
    taps.index_add_(0, _taps_of_pairs(sizes, kernel, stride, padding), pairs)
    result = torch.empty_like(weight)
    result[:, 0] = taps[:-1].t().reshape(channels, *kernel)
    return result


@functools.lru_cache(maxsize=256)
def _taps_of_pairs(
    sizes: tuple[tuple[int, int], tuple[int, int]],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Return the tap, counted row by row, through which each result reads each pixel; past the last where none does."""
    (out_height, out_width), (height, width) = sizes
    row = torch.arange(height) - torch.arange(out_height)[:, None] * stride[0] + padding[0]
    column = torch.arange(width) - torch.arange(out_width)[:, None] * stride[1] + padding[1]
    row, column = row[:, None, :, None], column[None, :, None, :]
    inside = (row >= 0) & (row < kernel[0]) & (column >= 0) & (column < kernel[1])
    return torch.where(inside, row * kernel[1] + column, kernel[0] * kernel[1]).flatten()
