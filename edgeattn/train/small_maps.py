"""Depthwise convolutions of tiny maps as products of small matrices, which is how they train fast on CPUs.

torch's CPU kernels (oneDNN) fall back to a plain loop for the gradients of depthwise convolutions whose map is smaller
than the kernel: 32 x 336 channels of one pixel took 13 ms forward and back, as a product of matrices 0.4 ms. A mobile
network of small images ends in many of those. Channel by channel such a convolution is a matrix from all input pixels
to all output pixels, whose entries are taps of the kernel or zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["SmallMapDepthwise"]

_LARGEST_MAP = 4
"""Pixels of the input map: at 4 x 4 the kernels are fast again, and the matrices large."""


class SmallMapDepthwise(TorchFunctionMode):
    """While entered, computes depthwise convolutions of tiny maps on the CPU by matrices.

    Every call of ``conv2d`` is seen, whoever makes it: a module, or fake quantization around it. The sums are the
    same, in another order.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace what is a depthwise convolution of a tiny map; call the rest."""
        if func is torch.conv2d:
            call = _Call(*args, **(kwargs or {}))
            if call.is_tiny_depthwise():
                return call.as_product()
        return func(*args, **(kwargs or {}))


class _Call:
    """The arguments of ``torch.conv2d``."""

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
    ) -> None:
        self.input, self.weight, self.bias = input, weight, bias
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def is_tiny_depthwise(self) -> bool:
        value, weight = self.input, self.weight
        return (
            value.ndim == 4
            and value.device.type == "cpu"
            and value.shape[2] * value.shape[3] <= _LARGEST_MAP
            and weight.shape[2] * weight.shape[3] > 1
            and weight.shape[0] == weight.shape[1] * self.groups == value.shape[1]
            and weight.shape[1] == 1
            and not isinstance(self.padding, str)
        )

    def as_product(self) -> Tensor:
        value, weight = self.input, self.weight
        count, channels, height, width = value.shape
        places, out_height, out_width = _places(
            (height, width),
            (weight.shape[2], weight.shape[3]),
            _pair(self.stride),
            _pair(self.padding),  # type: ignore[arg-type]  # no string: checked before
            _pair(self.dilation),
        )
        taps = F.pad(weight.reshape(channels, -1), (0, 1))
        matrices = taps[:, places].reshape(channels, height * width, out_height * out_width)
        pixels = value.reshape(count, channels, -1).transpose(0, 1)
        result = torch.bmm(pixels, matrices).transpose(0, 1).reshape(count, channels, out_height, out_width)
        return result if self.bias is None else result + self.bias.reshape(1, -1, 1, 1)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


@functools.lru_cache(maxsize=64)
def _places(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[Tensor, int, int]:
    """Return which tap joins each input pixel to each output pixel, and the output's height and width.

    Taps are counted row by row; the one behind the last is the zero of pixels that no tap joins.
    """
    rows, columns = (
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    places = torch.full((*size, rows, columns), kernel[0] * kernel[1])
    for row in range(rows):
        for column in range(columns):
            for tap_row in range(kernel[0]):
                for tap_column in range(kernel[1]):
                    y = row * stride[0] - padding[0] + tap_row * dilation[0]
                    x = column * stride[1] - padding[1] + tap_column * dilation[1]
                    if 0 <= y < size[0] and 0 <= x < size[1]:
                        places[y, x, row, column] = tap_row * kernel[1] + tap_column
    return places.flatten(), rows, columns
