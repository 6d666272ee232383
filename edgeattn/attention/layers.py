"""Parts that edge forms are built from: static reductions and convolutions with derived weights."""

from __future__ import annotations

import abc
import math

import torch
from torch import nn
from torch.nn import functional

from edgeattn.errors import RecipeError

__all__ = [
    "BandedConvBn",
    "ChannelMeanConv",
    "ChannelRowConv",
    "ConvBn",
    "DerivedConv2d",
    "DerivedConvBn",
    "DoubledBiasConv",
    "EcaBandedConv",
    "Max",
    "Mean",
    "MeanConv",
    "StackedConv",
    "TransposedConvBn",
    "check_kernel_size",
    "check_positive",
    "make_average",
    "make_maximum",
]


def _is_integer(value: object) -> bool:
    # A recipe can hold anything, and True is an int to Python.
    return isinstance(value, int) and not isinstance(value, bool)


def check_kernel_size(kernel_size: int) -> int:
    """Return `kernel_size` if it is odd and positive.

    Raises:
        RecipeError: Otherwise: only odd kernels keep the map's size.
    """
    if not _is_integer(kernel_size) or kernel_size < 1:
        raise RecipeError(f"kernel_size must be a positive odd number, got {kernel_size!r}.")
    if kernel_size % 2 == 0:
        raise RecipeError(f"kernel_size must be odd to keep the map's size, got {kernel_size}.")
    return kernel_size


def check_positive(name: str, value: int) -> int:
    """Return `value` if it is a positive whole number.

    Raises:
        RecipeError: Otherwise.
    """
    if not _is_integer(value) or value < 1:
        raise RecipeError(f"{name} must be positive and whole, got {value!r}.")
    return value


class Mean(nn.Module):
    """Mean over `dims`, kept with size 1."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reduce `x`."""
        return x.mean(self.dims, keepdim=True)

    def extra_repr(self) -> str:
        """Describe the dimensions."""
        return f"dims={self.dims}"


class Max(nn.Module):
    """Maximum over `dims`, kept with size 1."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reduce `x`."""
        return x.amax(self.dims, keepdim=True)

    def extra_repr(self) -> str:
        """Describe the dimensions."""
        return f"dims={self.dims}"


def make_average(pooled: bool, height: int | None, width: int | None) -> nn.Module:
    """Return the mean over `height` rows and `width` columns (None: not over these).

    Args:
        pooled: An AvgPool2d with a fixed kernel if true, a reduction otherwise.
        height: All rows of the map, or None.
        width: All columns of the map, or None.
    """
    if pooled:
        return nn.AvgPool2d((height or 1, width or 1))
    return Mean(*([2] if height else []), *([3] if width else []))


def make_maximum(pooled: bool, height: int | None, width: int | None) -> nn.Module:
    """Return the maximum over `height` rows and `width` columns, as `make_average` does the mean."""
    if pooled:
        return nn.MaxPool2d((height or 1, width or 1))
    return Max(*([2] if height else []), *([3] if width else []))


class ConvBn(nn.Module):
    """Convolution without bias and batch norm, under the keys ``conv`` and ``bn``.

    The momentum of 0.01 is that of the Triplet Attention and CBAM authors.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=(kernel_size - 1) // 2, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-5, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve and normalize `x`."""
        y: torch.Tensor = self.bn(self.conv(x))
        return y


class DerivedConv2d(nn.Module, abc.ABC):
    """A convolution whose weight is computed from shared Parameters at each call.

    The computation is differentiable, so training reaches the Parameters, and it is made of operations
    that ONNX export folds into an initializer. A quantizer that wants to fake-quantize the weight applies
    itself to `derived_weight` and then calls `convolve`.
    """

    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    @abc.abstractmethod
    def derived_weight(self) -> torch.Tensor:
        """Return the weight, shape (out, in, kh, kw)."""

    def derived_bias(self) -> torch.Tensor | None:
        """Return the bias, shape (out,), if there is one."""
        return None

    def convolve(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Convolve `x` with a weight of `derived_weight`'s shape."""
        return functional.conv2d(x, weight, bias, padding=self.padding, groups=self.groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve `x` with the derived weight."""
        return self.convolve(x, self.derived_weight(), self.derived_bias())

    def to_conv2d(self) -> nn.Conv2d:
        """Return an ordinary convolution that holds a copy of the derived weight and bias."""
        with torch.no_grad():
            weight, bias = self.derived_weight(), self.derived_bias()
            conv = nn.Conv2d(
                weight.shape[1] * self.groups,
                weight.shape[0],
                (weight.shape[2], weight.shape[3]),
                padding=self.padding,
                groups=self.groups,
                bias=bias is not None,
                device=weight.device,
                dtype=weight.dtype,
            )
            conv.weight.copy_(weight)
            if bias is not None and conv.bias is not None:
                conv.bias.copy_(bias)
        conv.train(self.training)
        return conv


def _band(channels: int, kernel_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which tap of a kernel links two channels, (out * in,), and whether one does, (out, in)."""
    out = torch.arange(channels).unsqueeze(1)
    tap = torch.arange(channels).unsqueeze(0) - out + kernel_size // 2
    inside = (tap >= 0) & (tap < kernel_size)
    # Flat, because ONNX export folds a Gather only if its index has one dimension.
    return tap.clamp(0, kernel_size - 1).reshape(-1), inside.to(torch.get_default_dtype())


class EcaBandedConv(DerivedConv2d):
    """The 1-D convolution over channels of ECA as a 1x1 convolution with a banded matrix."""

    tap: torch.Tensor
    mask: torch.Tensor

    def __init__(self, source: nn.Conv1d, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weight = source.weight  # (1, 1, k)
        tap, mask = _band(channels, source.kernel_size[0])
        self.register_buffer("tap", tap.to(source.weight.device), persistent=False)
        self.register_buffer("mask", mask.to(source.weight), persistent=False)

    def derived_weight(self) -> torch.Tensor:
        """Return the band, shape (C, C, 1, 1)."""
        taps = self.weight.reshape(-1)[self.tap].reshape(self.channels, self.channels)
        return (taps * self.mask).reshape(self.channels, self.channels, 1, 1)


class ChannelRowConv(DerivedConv2d):
    """The 1-D convolution of ECA as a (1, k) convolution over channels laid out as width."""

    def __init__(self, source: nn.Conv1d) -> None:
        super().__init__()
        self.weight = source.weight  # (1, 1, k)
        self.padding = (0, source.kernel_size[0] // 2)

    def derived_weight(self) -> torch.Tensor:
        """Return the taps, shape (1, 1, 1, k)."""
        return self.weight.unsqueeze(2)


class DoubledBiasConv(DerivedConv2d):
    """A 1x1 convolution with twice its bias: ``f(a) + f(b)`` for ``f(a + b)``."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        self.weight = source.weight
        self.bias = source.bias

    def derived_weight(self) -> torch.Tensor:
        """Return the weight as it is."""
        return self.weight

    def derived_bias(self) -> torch.Tensor | None:
        """Return twice the bias."""
        return None if self.bias is None else self.bias * 2.0


class StackedConv(DerivedConv2d):
    """Two 1x1 convolutions of one map as one, their outputs behind each other; (N, M, H, W) -> (N, 2C, H, W).

    The two stay the parts of whoever made them, under their own keys.
    """

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d) -> None:
        super().__init__()
        # In a tuple modules are not registered a second time.
        self._sources = (first, second)

    def derived_weight(self) -> torch.Tensor:
        """Return both weights, shape (2C, M, 1, 1)."""
        return torch.cat([source.weight for source in self._sources])

    def derived_bias(self) -> torch.Tensor | None:
        """Return both biases, shape (2C,)."""
        first, second = (source.bias for source in self._sources)
        return None if first is None or second is None else torch.cat([first, second])


class _AveragingConv(DerivedConv2d):
    """A convolution that takes means: all weights of an output are one over their number."""

    weight: torch.Tensor

    def __init__(self, shape: tuple[int, int, int, int], like: torch.Tensor) -> None:
        super().__init__()
        # Filled in the end's own type: in float64 the rounding of 1/n to float32 would show.
        weight = torch.empty(shape).to(like).fill_(1.0 / math.prod(shape[1:]))
        self.register_buffer("weight", weight, persistent=False)

    def derived_weight(self) -> torch.Tensor:
        """Return the constant weight."""
        return self.weight


class MeanConv(_AveragingConv):
    """The mean over all rows, or all columns, as a depthwise convolution; (N, C, H, W) -> (N, C, 1, W) or (N, C, H, 1).

    A convolution computes an activation function behind it in the same kernel, which a pool does not.

    Args:
        channels: C.
        height: All rows of the map, or None: not over these.
        width: All columns of the map, or None: not over these.
        like: A tensor of the type and the device to take.
    """

    def __init__(self, channels: int, height: int | None, width: int | None, like: torch.Tensor) -> None:
        super().__init__((channels, 1, height or 1, width or 1), like)
        self.groups = channels


class ChannelMeanConv(_AveragingConv):
    """The mean over channels as a 1x1 convolution with weights 1/C; (N, C, H, W) -> (N, 1, H, W)."""

    def __init__(self, channels: int, like: torch.Tensor) -> None:
        super().__init__((1, channels, 1, 1), like)


class DerivedConvBn(DerivedConv2d):
    """A derived convolution and the batch norm of one channel behind it.

    The batch norm is part of the derived weight and bias while it is in evaluation mode. In training mode
    it takes its statistics over the whole plane, whichever way that is laid out here.

    Args:
        source: The authors' layer: convolution (1, 2, k, k) and batch norm of one channel.
    """

    def __init__(self, source: ConvBn) -> None:
        super().__init__()
        self.conv = source.conv
        self.bn = source.bn

    @abc.abstractmethod
    def plain_weight(self) -> torch.Tensor:
        """Return the convolution's weight without the batch norm."""

    def _norm_scale(self) -> torch.Tensor:
        bn = self.bn
        variance = bn.running_var if bn.running_var is not None else torch.ones_like(bn.weight)
        return bn.weight / torch.sqrt(variance + bn.eps)  # (1,)

    def derived_weight(self) -> torch.Tensor:
        """Return the weight times the batch norm's scale."""
        return self.plain_weight() * self._norm_scale()

    def derived_bias(self) -> torch.Tensor:
        """Return the batch norm's shift, once for every output channel."""
        bn = self.bn
        mean = bn.running_mean if bn.running_mean is not None else torch.zeros_like(bn.weight)
        return bn.bias - mean * self._norm_scale()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve and normalize `x`."""
        if not self.bn.training:
            return super().forward(x)
        y = self.convolve(x, self.plain_weight(), None)
        normalized: torch.Tensor = self.bn(y.reshape(y.shape[0], 1, -1, 1))
        return normalized.reshape(y.shape)


class TransposedConvBn(DerivedConvBn):
    """The authors' layer for a plane whose axes are swapped: the kernel is transposed, not the map."""

    def __init__(self, source: ConvBn) -> None:
        super().__init__(source)
        self.padding = (source.conv.kernel_size[0] // 2, source.conv.kernel_size[1] // 2)

    def plain_weight(self) -> torch.Tensor:
        """Return the kernel with rows and columns swapped, shape (1, 2, k, k)."""
        return self.conv.weight.transpose(2, 3)


class BandedConvBn(DerivedConvBn):
    """The authors' layer over a plane (C, L), with C as channels.

    The plane's channel axis becomes the channel axis of an ordinary convolution with 2C inputs, C
    outputs, banded weights, and a kernel along L only.

    Args:
        source: The authors' layer.
        channels: C.
        along_width: Whether L is the width: plane (C, W) of the authors' branch ``cw``, maps
            (N, 2C, 1, W). Otherwise plane (H, C) of the branch ``hc``, maps (N, 2C, H, 1).
    """

    tap: torch.Tensor
    mask: torch.Tensor
    ones: torch.Tensor

    def __init__(self, source: ConvBn, channels: int, *, along_width: bool) -> None:
        super().__init__(source)
        kernel_size = source.conv.kernel_size[0]
        self.channels = channels
        self.along_width = along_width
        self.padding = (0, kernel_size // 2) if along_width else (kernel_size // 2, 0)
        like = source.conv.weight
        tap, mask = _band(channels, kernel_size)
        self.register_buffer("tap", tap.to(like.device), persistent=False)
        self.register_buffer("mask", mask.to(like), persistent=False)
        self.register_buffer("ones", torch.ones(channels).to(like), persistent=False)

    def plain_weight(self) -> torch.Tensor:
        """Return the banded weight, shape (C, 2C, 1, k) or (C, 2C, k, 1)."""
        kernel = self.conv.weight.squeeze(0)  # (2, k, k)
        channels, size = self.channels, self.conv.kernel_size[0]
        if self.along_width:
            band = kernel[:, self.tap].reshape(2, channels, channels, size)  # (2, out, in, k)
            band = (band * self.mask.unsqueeze(2)).transpose(0, 1)
            return band.reshape(channels, 2 * channels, 1, size)
        band = kernel[:, :, self.tap].reshape(2, size, channels, channels)  # (2, k, out, in)
        return (band * self.mask).permute(2, 0, 3, 1).reshape(channels, 2 * channels, size, 1)

    def derived_bias(self) -> torch.Tensor:
        """Return the batch norm's shift, shape (C,)."""
        return super().derived_bias() * self.ones
