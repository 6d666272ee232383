"""Convolutional Block Attention Module (arXiv 1807.06521; authors' code: Jongchan/attention-module).

A channel gate, ``sigmoid(mlp(mean) + mlp(max))`` over H and W, then a spatial gate,
``sigmoid(bn(conv7x7([max, mean])))`` over the channels of the map that the first gate already scaled.
Shapes: (N, C, H, W); channel gate (N, C, 1, 1); spatial gate (N, 1, H, W).

Deviations: the authors' shared MLP is two `nn.Linear`; here they are 1x1 convolutions under the same
keys, and 2-D weights are accepted when loading. The squeezed width is at least 1.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from edgeattn.attention.base import Attention, EdgeForm
from edgeattn.attention.layers import (
    ChannelMeanConv,
    ConvBn,
    DoubledBiasConv,
    Max,
    Mean,
    check_kernel_size,
    make_average,
    make_maximum,
)
from edgeattn.attention.spatial_plane import SpatialPlane
from edgeattn.errors import RecipeError

__all__ = ["ConvolutionalBlockAttention", "PointwiseLinear"]


class PointwiseLinear(nn.Conv2d):
    """A 1x1 convolution that also loads the 2-D weight of the `nn.Linear` it stands for."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, 1)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        weight = state_dict.get(prefix + "weight")
        if isinstance(weight, torch.Tensor) and weight.dim() == 2:
            state_dict = {**state_dict, prefix + "weight": weight[:, :, None, None]}
        super()._load_from_state_dict(state_dict, prefix, *args)


class _ChannelGate(nn.Module):
    def __init__(self, mlp_in: nn.Module, mlp_act: nn.Module, mlp_out: nn.Module) -> None:
        super().__init__()
        # Index 0 of the authors' Sequential is a Flatten, which 1x1 convolutions do not need.
        self.mlp = nn.Sequential(OrderedDict([("1", mlp_in), ("2", mlp_act), ("3", mlp_out)]))


class _SpatialGate(nn.Module):
    def __init__(self, spatial: nn.Module) -> None:
        super().__init__()
        self.spatial = spatial


class ConvolutionalBlockAttention(Attention):
    """CBAM, keys ``ChannelGate.mlp.{1,3}`` and ``SpatialGate.spatial.{conv,bn}``.

    Args:
        channels: Channels of the map.
        reduction: Squeeze ratio of the MLP.
        kernel_size: Of the spatial gate's convolution.

    Raises:
        RecipeError: If an option's value is not valid.
    """

    kind = "cbam"

    def __init__(self, channels: int, *, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__(channels)
        if reduction < 1:
            raise RecipeError(f"reduction must be positive, got {reduction}.")
        squeezed = max(1, channels // reduction)
        self.ChannelGate = _ChannelGate(
            PointwiseLinear(channels, squeezed), nn.ReLU(), PointwiseLinear(squeezed, channels)
        )
        self.SpatialGate = _SpatialGate(ConvBn(2, 1, check_kernel_size(kernel_size)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        average = x.mean((2, 3), keepdim=True)
        maximum = x.amax((2, 3), keepdim=True)
        channel_gate = (self.ChannelGate.mlp(average) + self.ChannelGate.mlp(maximum)).sigmoid()
        y: torch.Tensor = x * channel_gate
        planes = torch.cat([y.amax(1, keepdim=True), y.mean(1, keepdim=True)], dim=1)
        spatial_gate: torch.Tensor = self.SpatialGate.spatial(planes).sigmoid()
        return y * self.apply_factor(spatial_gate)

    def _zero_gates(self) -> float:
        last = self._mlp_layer("3")
        last.weight.zero_()
        if last.bias is not None:
            last.bias.zero_()
        spatial = self._spatial_layer()
        spatial.bn.weight.zero_()
        spatial.bn.bias.zero_()
        return 0.25

    def map_reading_weights(self) -> list[torch.Tensor]:
        """Return the first weights of both gates."""
        return [self._mlp_layer("1").weight, self._spatial_layer().conv.weight]

    def _mlp_layer(self, key: str) -> nn.Conv2d:
        layer = self.ChannelGate.mlp.get_submodule(key)
        if not isinstance(layer, nn.Conv2d):
            raise TypeError(f"ChannelGate.mlp.{key} was replaced by {type(layer).__name__}.")
        return layer

    def _spatial_layer(self) -> ConvBn:
        layer = self.SpatialGate.spatial
        if not isinstance(layer, ConvBn):
            raise TypeError(f"SpatialGate.spatial was replaced by {type(layer).__name__}.")
        return layer

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _CbamEdge(self, height, width, form)


class _CbamEdge(EdgeForm):
    """Static pools; one last MLP layer for both pools.

    The last layer is linear, so it runs once on the sum: ``f(a) + f(b)`` is ``f(a + b)`` with twice the
    bias. In the forms ``short_axis_*`` the spatial plane's rows (its columns in ``short_axis_columns_*``) are the
    channels of a banded convolution, which fills the lanes that a convolution to one channel leaves idle.
    """

    def __init__(self, source: ConvolutionalBlockAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        pooled = "pool" in form
        last = source._mlp_layer("3")
        self.avg_pool = make_average(pooled, height, width)
        self.max_pool = make_maximum(pooled, height, width)
        self.ChannelGate = _ChannelGate(
            source._mlp_layer("1"), source.ChannelGate.mlp.get_submodule("2"), DoubledBiasConv(last)
        )
        self.sigmoid_channel = nn.Sigmoid()
        self.channel_max = Max(1)
        self.channel_mean = ChannelMeanConv(source.channels, last.weight) if pooled else Mean(1)
        spatial = source._spatial_layer()
        self._plane: SpatialPlane | None = None
        if form.startswith("short_axis"):
            self._plane = SpatialPlane(height, width, columns=form.startswith("short_axis_columns"))
        self.SpatialGate = _SpatialGate(spatial if self._plane is None else self._plane.convolution(spatial))
        self.sigmoid_spatial = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        first, act, last = self.ChannelGate.mlp.children()
        summed = act(first(self.avg_pool(x))) + act(first(self.max_pool(x)))
        y: torch.Tensor = x * self.sigmoid_channel(last(summed))
        maximum, mean = self.channel_max(y), self.channel_mean(y)
        plane = self._plane
        planes = torch.cat([maximum, mean], dim=1) if plane is None else plane.join(maximum, mean)
        gate: torch.Tensor = self.sigmoid_spatial(self.SpatialGate.spatial(planes))
        return y * self.apply_factor(gate if plane is None else plane.as_map(gate))
