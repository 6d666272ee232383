"""Triplet Attention (arXiv 2010.03045; authors' code: landskape-ai/triplet-attention).

Three gates, one for each pair of axes: the remaining axis is reduced to its maximum and mean, a k x k
convolution (2 -> 1, no bias), batch norm and sigmoid follow, and the three products are averaged.
Shapes: (N, C, H, W); gates (N, C, 1, W) from the plane (C, W), (N, C, H, 1) from (H, C), (N, 1, H, W).

Deviations: none in the function. The keys are those of the authors' stand-alone module; their MobileNetV2
calls the branches ``ChannelGateH``, ``ChannelGateW``, ``SpatialGate``, which
`edgeattn.models.load_weights` translates.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from edgeattn.attention.base import Attention, EdgeForm
from edgeattn.attention.layers import (
    BandedConvBn,
    ChannelMeanConv,
    ConvBn,
    Max,
    Mean,
    TransposedConvBn,
    check_kernel_size,
    make_average,
    make_maximum,
)
from edgeattn.attention.spatial_plane import SpatialPlane

__all__ = ["TripletAttention"]


class _Branch(nn.Module):
    """Holds one branch's layers under the authors' key ``conv``."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.sigmoid = nn.Sigmoid()

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        gate: torch.Tensor = self.sigmoid(self.conv(planes))
        return gate


def _z_pool(x: torch.Tensor) -> torch.Tensor:
    """Return maximum and mean over dimension 1, shape (N, 2, ., .)."""
    return torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)


class TripletAttention(Attention):
    """Triplet Attention, keys ``cw``, ``hc``, ``hw`` + ``.conv.{conv,bn}``.

    Args:
        channels: Channels of the map; no parameter depends on it.
        kernel_size: Of the three convolutions.
        no_spatial: Leave out the branch over (H, W) and average two.

    Raises:
        RecipeError: If the kernel size is not odd and positive.
    """

    kind = "triplet"
    key_aliases: ClassVar[dict[str, str]] = {
        "ChannelGateH.spatial.": "cw.conv.",
        "ChannelGateW.spatial.": "hc.conv.",
        "SpatialGate.spatial.": "hw.conv.",
    }

    def __init__(self, channels: int, *, kernel_size: int = 7, no_spatial: bool = False) -> None:
        super().__init__(channels)
        check_kernel_size(kernel_size)
        self.base_factor = 1 / 2 if no_spatial else 1 / 3
        self.cw = _Branch(ConvBn(2, 1, kernel_size))
        self.hc = _Branch(ConvBn(2, 1, kernel_size))
        self.hw = None if no_spatial else _Branch(ConvBn(2, 1, kernel_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        permuted = x.permute(0, 2, 1, 3)  # (N, H, C, W)
        gate_cw = self.cw(_z_pool(permuted)).permute(0, 2, 1, 3)  # (N, C, 1, W)
        permuted = x.permute(0, 3, 2, 1)  # (N, W, H, C)
        gate_hc = self.hc(_z_pool(permuted)).permute(0, 3, 2, 1)  # (N, C, H, 1)
        gates = [gate_cw, gate_hc]
        if self.hw is not None:
            gates.append(self.hw(_z_pool(x)))  # (N, 1, H, W)
        if self.gain == 1.0:
            return torch.stack([x * gate for gate in gates]).sum(0) * self.factor
        # Sum the gates first: with every gate at one half, 1.5 * (2/3) rounds to exactly one, while
        # rounding three products would move the outputs of a network that starts as the identity.
        total: torch.Tensor = sum(gates[1:], gates[0])
        return x * (total * self.factor)

    def _convs(self) -> list[ConvBn]:
        branches = [self.cw, self.hc] if self.hw is None else [self.cw, self.hc, self.hw]
        return [branch.conv for branch in branches if isinstance(branch.conv, ConvBn)]

    def _zero_gates(self) -> float:
        for layer in self._convs():
            # The batch norm's scale, not the convolution: normalizing a constant map in training mode
            # would multiply the convolution's first gradients by 1 / sqrt(eps).
            layer.bn.weight.zero_()
            layer.bn.bias.zero_()
        return 0.5

    def map_reading_weights(self) -> list[torch.Tensor]:
        """Return the convolutions' weights."""
        return [layer.conv.weight for layer in self._convs()]

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        if form.startswith("short_axis"):
            return _ShortAxisTriplet(self, height, width, form)
        if form.startswith("banded"):
            return _BandedTriplet(self, height, width, form)
        return _ReshapeTriplet(self, height, width, form)


class _TripletEdge(EdgeForm):
    """One pass over the map: ``x * g1 + x * g2 + x * g3`` is ``x * (g1 + g2 + g3)``."""

    def __init__(self, source: TripletAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        pooled = not form.endswith("_mean")
        like = source._convs()[0].conv.weight
        self.max_h = make_maximum(pooled, height, None)
        self.mean_h = make_average(pooled, height, None)
        self.max_w = make_maximum(pooled, None, width)
        self.mean_w = make_average(pooled, None, width)
        self.cw, self.hc = self._make_branches(source)
        self.hw: _Branch | None = None
        if source.hw is not None:
            self.max_c: nn.Module = Max(1)
            self.mean_c: nn.Module = ChannelMeanConv(source.channels, like) if pooled else Mean(1)
            self.hw = _Branch(source.hw.conv)

    def _make_branches(self, source: TripletAttention) -> tuple[_Branch, _Branch]:
        raise NotImplementedError

    def _planes(self, maximum: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        return torch.cat([maximum, mean], dim=1)

    def _gates(self, of_columns: torch.Tensor, of_rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        of_columns = self._planes(self.max_h(x), self.mean_h(x))  # (N, 2C, 1, W)
        of_rows = self._planes(self.max_w(x), self.mean_w(x))  # (N, 2C, H, 1)
        gate_cw, gate_hc = self._gates(of_columns, of_rows)
        total = gate_cw + gate_hc  # (N, C, H, W)
        if self.hw is not None:
            total = total + self.hw(self._planes(self.max_c(x), self.mean_c(x)))
        return x * self.apply_factor(total)


def _conv_bn(branch: _Branch) -> ConvBn:
    if not isinstance(branch.conv, ConvBn):
        raise TypeError(f"A branch of the float form was replaced by {type(branch.conv).__name__}.")
    return branch.conv


class _BandedTriplet(_TripletEdge):
    """The planes with the channel axis as ordinary convolutions with banded weights.

    A kernel (1, k) or (k, 1) with 2C inputs and C outputs: no layout change at all, for C times the
    weights, nearly all of them zero.
    """

    def _make_branches(self, source: TripletAttention) -> tuple[_Branch, _Branch]:
        return (
            _Branch(BandedConvBn(_conv_bn(source.cw), source.channels, along_width=True)),
            _Branch(BandedConvBn(_conv_bn(source.hc), source.channels, along_width=False)),
        )

    def _gates(self, of_columns: torch.Tensor, of_rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cw(of_columns), self.hc(of_rows)


class _ShortAxisTriplet(_TripletEdge):
    """Of each plane the shorter axis as channels of an ordinary convolution with banded weights.

    A convolution from two channels to one leaves 15 of 16 lanes of an integer kernel idle, and a band
    over hundreds of channels reads a megabyte of zeros. With a short axis as channels all lanes work and
    the band stays small. Only pooled maps are permuted. In the forms ``short_axis_columns_*`` the channels of
    the plane (H, W) are its columns, otherwise its rows.
    """

    # Permuting the pooled maps costs about as much as a band that is this many times too wide.
    _RATIO = 6

    def __init__(self, source: TripletAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self._plane = SpatialPlane(height, width, columns=form.startswith("short_axis_columns"))
        if source.hw is not None:
            self.hw = _Branch(self._plane.convolution(_conv_bn(source.hw)))

    @property
    def _columns_as_channels(self) -> bool:
        return self.channels > self._RATIO * self.width

    @property
    def _rows_as_channels(self) -> bool:
        return self.channels > self._RATIO * self.height

    def _make_branches(self, source: TripletAttention) -> tuple[_Branch, _Branch]:
        # Plane (C, W) has W along its width, plane (H, C) has H along its height.
        cw = (self.width, False) if self._columns_as_channels else (self.channels, True)
        hc = (self.height, True) if self._rows_as_channels else (self.channels, False)
        return (
            _Branch(BandedConvBn(_conv_bn(source.cw), cw[0], along_width=cw[1])),
            _Branch(BandedConvBn(_conv_bn(source.hc), hc[0], along_width=hc[1])),
        )

    def _gate_cw(self, x: torch.Tensor) -> torch.Tensor:
        maximum, mean = self.max_h(x), self.mean_h(x)  # (N, C, 1, W)
        if not self._columns_as_channels:
            gate: torch.Tensor = self.cw(self._planes(maximum, mean))
            return gate
        # (N, C, 1, W) -> (N, W, C, 1) and back. One permutation back would leave the gate channels first, and ONNX
        # Runtime would transpose the map to it. It moves no transpose through a reshape.
        planes = self._planes(maximum.permute(0, 3, 1, 2), mean.permute(0, 3, 1, 2))
        last: torch.Tensor = self.cw(planes).reshape(-1, 1, self.width, self.channels)
        return last.permute(0, 3, 1, 2)

    def _gate_hc(self, x: torch.Tensor) -> torch.Tensor:
        maximum, mean = self.max_w(x), self.mean_w(x)  # (N, C, H, 1)
        if not self._rows_as_channels:
            gate: torch.Tensor = self.hc(self._planes(maximum, mean))
            return gate
        # (N, C, H, 1) -> (N, H, 1, C) and back
        planes = self._planes(maximum.permute(0, 2, 3, 1), mean.permute(0, 2, 3, 1))
        gate = self.hc(planes)
        return gate.permute(0, 3, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        total = self._gate_cw(x) + self._gate_hc(x)  # (N, C, H, W)
        if self.hw is not None:
            planes = self._plane.join(self.max_c(x), self.mean_c(x))
            total = total + self._plane.as_map(self.hw(planes))
        return x * self.apply_factor(total)


class _ReshapeTriplet(_TripletEdge):
    """The small pooled planes are reshaped, never permuted: (N, 2C, 1, W) is (N, 2, C, W) in memory.

    The plane of the branch ``hc`` comes out as (C, H) instead of (H, C), so its kernel is transposed.
    """

    def _make_branches(self, source: TripletAttention) -> tuple[_Branch, _Branch]:
        return _Branch(source.cw.conv), _Branch(TransposedConvBn(_conv_bn(source.hc)))

    def _gates(self, of_columns: torch.Tensor, of_rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        channels = self.channels
        gate_cw = self.cw(of_columns.reshape(-1, 2, channels, self.width))
        gate_hc = self.hc(of_rows.reshape(-1, 2, channels, self.height))
        return (
            gate_cw.reshape(-1, channels, 1, self.width),
            gate_hc.reshape(-1, channels, self.height, 1),
        )
