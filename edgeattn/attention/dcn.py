"""Deformable convolution v2 (arXiv 1703.06211, 1811.11168).

A convolution whose taps are read from the map at learned places: tap k of output p reads, bilinearly and with
zeros outside, at ``p + p_k + offset_k(p)`` and weighs it with ``2 sigmoid(m_k(p))``. An ordinary convolution
that starts at zero gives offsets and m, so that the layer starts as the plain convolution.
Shapes: (N, C, H, W) -> (N, C_out, H', W'); offsets (N, 2 K K, H', W') as (dy, dx) pairs; m (N, K K, H', W').

The layer is computed as one GridSample to a map (N, C, K H', K W') that holds the K x K taps of every output
beside each other, one product, and an ordinary K x K convolution with stride K, so that no runtime needs a kernel
for ONNX's own DeformConv (opset 19), and the convolution runs in INT8 wherever convolutions do.

Deviations: one group of offsets for all channels; no dilation.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from edgeattn.attention.base import ConvolutionAttention, EdgeForm
from edgeattn.attention.layers import DerivedConv2d
from edgeattn.errors import ModelError

__all__ = ["DeformableConvolution"]


def _base_places(rows: int, columns: int, kernel: int, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where taps read without offsets: y (K H', 1) and x (1, K W'), in pixels, float64."""

    def places(count: int) -> torch.Tensor:
        first = torch.arange(count, dtype=torch.float64)[:, None] * stride - kernel // 2
        return (first + torch.arange(kernel, dtype=torch.float64)).reshape(-1)

    return places(rows)[:, None], places(columns)[None, :]


class DeformableConvolution(ConvolutionAttention):
    """Modulated deformable convolution, keys ``weight``, ``conv_offset``.

    Args:
        in_channels: Of the map.
        out_channels: Of the result.
        kernel_size: Odd.
        stride: Of the convolution.
        groups: Of the convolution.

    Raises:
        RecipeError: If a value is not valid.
    """

    kind = "dcn"
    # Taps that move too fast look at nothing that the network knows: a tenth trains stabler, as the authors of v2 say.
    learning_rate_scales: ClassVar[dict[str, float]] = {"conv_offset": 0.1}

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, groups=groups)
        taps = kernel_size**2
        self.conv_offset = nn.Conv2d(in_channels, 3 * taps, kernel_size, stride, kernel_size // 2)
        nn.init.zeros_(self.conv_offset.weight)
        if self.conv_offset.bias is not None:
            nn.init.zeros_(self.conv_offset.bias)
        # Of the gathered map: the taps lie beside each other, so the stride is the kernel.
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, kernel_size, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve `x`, shape (N, C, H, W)."""
        height, width = x.shape[2:]
        kernel, taps = self.kernel_size, self.kernel_size**2
        predicted = self.conv_offset(x)
        y, z = _base_places(predicted.shape[2], predicted.shape[3], kernel, self.stride)
        down = functional.pixel_shuffle(predicted[:, 0 : 2 * taps : 2], kernel)[:, 0] + y.to(x)
        right = functional.pixel_shuffle(predicted[:, 1 : 2 * taps : 2], kernel)[:, 0] + z.to(x)
        grid = torch.stack([(2 * right + 1) / width - 1, (2 * down + 1) / height - 1], dim=3)
        sampled = functional.grid_sample(x, grid, align_corners=False)
        modulation = 2 * torch.sigmoid(functional.pixel_shuffle(predicted[:, 2 * taps :], kernel))
        result: torch.Tensor = self.conv(sampled * modulation)
        return result

    def begin_with(self, weight: torch.Tensor) -> bool:
        """Start as the convolution: offsets start at 0 and modulations at 1."""
        with torch.no_grad():
            self.conv.weight.copy_(weight)
        return True

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _DeformableEdge(self, height, width, form)


class _OffsetPart(DerivedConv2d):
    """Some outputs of the offset convolution, in another order and scale.

    Offsets and modulation are convolved apart: in one INT8 tensor they would share a scale, and offsets in
    GridSample's units are much smaller.

    Args:
        source: The offset convolution.
        order: Its outputs to compute.
        scale: What each of them is multiplied by.
        owns: Whether this module has the Parameters in its state dict, which only one can.
    """

    order: torch.Tensor
    scale: torch.Tensor

    def __init__(self, source: nn.Conv2d, order: torch.Tensor, scale: torch.Tensor, *, owns: bool) -> None:
        super().__init__()
        # A list hides Parameters from torch, which finds them in the module that owns them.
        self._shared = [source.weight, source.bias]
        if owns:
            self.weight, self.bias = source.weight, source.bias
        self.padding = (source.kernel_size[0] // 2, source.kernel_size[1] // 2)
        self.stride = source.stride[0]
        self.register_buffer("order", order.to(source.weight.device), persistent=False)
        self.register_buffer("scale", scale.to(source.weight), persistent=False)

    def derived_weight(self) -> torch.Tensor:
        """Return the chosen rows of the weight, scaled."""
        weight = self._shared[0]
        if weight is None:
            raise ModelError("The offset convolution of dcn lost its weight.")
        return weight[self.order] * self.scale[:, None, None, None]

    def derived_bias(self) -> torch.Tensor | None:
        """Return the chosen biases, scaled."""
        bias = self._shared[1]
        return None if bias is None else bias[self.order] * self.scale

    def convolve(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Convolve `x` with the layer's stride."""
        return functional.conv2d(x, weight, bias, stride=self.stride, padding=self.padding)

    def to_conv2d(self) -> nn.Conv2d:
        """Return an ordinary convolution that holds copies."""
        conv = super().to_conv2d()
        conv.stride = (self.stride, self.stride)
        return conv


class _DeformableEdge(EdgeForm):
    """A constant grid to which the offsets are added, in GridSample's units."""

    base: torch.Tensor

    def __init__(self, source: DeformableConvolution, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.kernel, self.taps = source.kernel_size, source.kernel_size**2
        # From (y, x) pairs for each tap to all x, then all y.
        order = torch.arange(2 * self.taps).reshape(self.taps, 2).flip(1).T.reshape(-1)
        scale = torch.tensor([2.0 / width, 2.0 / height], dtype=torch.float64).repeat_interleave(self.taps)
        self.conv_offset = _OffsetPart(source.conv_offset, order, scale, owns=True)
        rest = torch.arange(2 * self.taps, 3 * self.taps)
        self.modulation = _OffsetPart(source.conv_offset, rest, torch.ones(self.taps), owns=False)
        self.conv = source.conv
        rows, columns = -(-height // source.stride), -(-width // source.stride)
        y, x = _base_places(rows, columns, self.kernel, source.stride)
        shape = (rows * self.kernel, columns * self.kernel)
        grid = torch.stack(
            [((2 * x + 1) / width - 1).expand(shape), ((2 * y + 1) / height - 1).expand(shape)], dim=2
        )
        self.register_buffer("base", grid.unsqueeze(0).to(source.conv.weight), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        offsets = functional.pixel_shuffle(self.conv_offset(x), self.kernel)
        sampled = functional.grid_sample(x, offsets.permute(0, 2, 3, 1) + self.base, align_corners=False)
        opened = functional.pixel_shuffle(self.modulation(x).sigmoid() * 2, self.kernel)
        result: torch.Tensor = self.conv(sampled * opened)
        return result
