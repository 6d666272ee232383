"""Coordinate Attention (arXiv 2103.02907; authors' code: houqb/CoordAttention).

Means over rows and over columns are squeezed by one shared 1x1 convolution, batch norm and h-swish, and
expanded by one 1x1 convolution each: ``x * a_w * a_h``.
Shapes: (N, C, H, W) -> (N, C, H, 1) and (N, C, 1, W) -> joined (N, C, H + W, 1) -> (N, M, H + W, 1)
-> gates (N, C, H, 1) and (N, C, 1, W) -> (N, C, H, W), with M = max(8, C // reduction).

Deviations: the keys are those of the authors' MobileNetV2 (``conv2``, ``conv3``); their stand-alone
module calls these ``conv_h``, ``conv_w``, which `edgeattn.models.load_weights` translates. h-swish is
`nn.Hardswish`, the same function ``x * relu6(x + 3) / 6``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from edgeattn.attention.base import Attention, EdgeForm
from edgeattn.attention.channels_last import gate_map, mean_over
from edgeattn.attention.layers import MeanConv, StackedConv, make_average
from edgeattn.errors import RecipeError

__all__ = ["CoordinateAttention"]


class CoordinateAttention(Attention):
    """Coordinate Attention, keys ``conv1``, ``bn1``, ``conv2`` (height) and ``conv3`` (width).

    Args:
        channels: Channels of the map.
        reduction: Squeeze ratio; the squeezed width is ``max(8, channels // reduction)``.

    Raises:
        RecipeError: If the reduction is not positive.
    """

    kind = "coord"
    key_aliases: ClassVar[dict[str, str]] = {"conv_h.": "conv2.", "conv_w.": "conv3."}

    def __init__(self, channels: int, *, reduction: int = 32) -> None:
        super().__init__(channels)
        if reduction < 1:
            raise RecipeError(f"reduction must be positive, got {reduction}.")
        squeezed = max(8, channels // reduction)
        self.conv1 = nn.Conv2d(channels, squeezed, 1)
        self.bn1 = nn.BatchNorm2d(squeezed)
        self.act = nn.Hardswish()
        self.conv2 = nn.Conv2d(squeezed, channels, 1)
        self.conv3 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        height, width = x.shape[2], x.shape[3]
        rows = mean_over(x, 3)  # (N, C, H, 1)
        columns = mean_over(x, 2).permute(0, 1, 3, 2)  # (N, C, W, 1)
        squeezed = self.act(self.bn1(self.conv1(torch.cat([rows, columns], dim=2))))
        of_rows, of_columns = torch.split(squeezed, [height, width], dim=2)
        gate_h: torch.Tensor = self.conv2(of_rows).sigmoid()
        gate_w: torch.Tensor = self.conv3(of_columns.permute(0, 1, 3, 2)).sigmoid()
        return gate_map(x, gate_w, self.apply_factor(gate_h))

    def _zero_gates(self) -> float:
        for conv in (self.conv2, self.conv3):
            conv.weight.zero_()
            if conv.bias is not None:
                conv.bias.zero_()
        return 0.25

    def map_reading_weights(self) -> list[torch.Tensor]:
        """Return the squeezing convolution's weight."""
        return [self.conv1.weight]

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        if form.startswith("two_branch"):
            return _TwoBranchCoord(self, height, width, form)
        if form.startswith("joint"):
            return _JointCoord(self, height, width, form)
        if form.startswith("squeezed"):
            return _SqueezedCoord(self, height, width, form)
        return _ConcatCoord(self, height, width, form)


class _CoordLayers(EdgeForm):
    """What all edge forms hold: pools and the shared layers."""

    def __init__(self, source: CoordinateAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        pooled = not form.endswith("_mean")
        self.pool_h = make_average(pooled, None, width)
        self.pool_w = make_average(pooled, height, None)
        self.conv1 = source.conv1
        self.bn1 = source.bn1
        self.act = source.act
        self.conv2 = source.conv2
        self.conv3 = source.conv3


class _CoordEdge(_CoordLayers):
    """With one sigmoid for each direction."""

    def __init__(self, source: CoordinateAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.sigmoid_h = nn.Sigmoid()
        self.sigmoid_w = nn.Sigmoid()

    def _join(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        # (N, C, 1, W) -> (N, C, W, 1) keeps the order of the elements: a reshape, not a transpose.
        as_rows = columns.reshape(-1, columns.shape[1], self.width, 1)
        return torch.cat([rows, as_rows], dim=2)

    def _part(self, joined: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
        # Not torch.split: the exporter names tensors after operations, and those have one result each.
        rows = joined.narrow(2, 0, self.height)
        columns = joined.narrow(2, self.height, self.width)
        return rows, columns.reshape(-1, channels, 1, self.width)

    def _joined_norm(self, rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Statistics are those of both maps together, as in the float form.
        return self._part(self.bn1(self._join(rows, columns)), self.bn1.num_features)

    def _gate(self, x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        gate_h: torch.Tensor = self.sigmoid_h(self.conv2(rows))
        gate_w: torch.Tensor = self.sigmoid_w(self.conv3(columns))
        return x * gate_w * self.apply_factor(gate_h)


class _TwoBranchCoord(_CoordEdge):
    """The point-wise squeeze runs on the two pooled maps separately: no Concat, Split or Transpose.

    While the batch norm takes statistics (training mode), it sees both maps joined, as in the float
    form; QAT normally freezes batch norms, which keeps the graph the same in training and evaluation.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        rows = self.conv1(self.pool_h(x))  # (N, M, H, 1)
        columns = self.conv1(self.pool_w(x))  # (N, M, 1, W)
        if self.bn1.training:
            rows, columns = self._joined_norm(rows, columns)
        else:
            rows, columns = self.bn1(rows), self.bn1(columns)
        return self._gate(x, self.act(rows), self.act(columns))


class _SqueezedCoord(_CoordEdge):
    """The squeeze runs on the map, before the means: a mean and a 1x1 convolution change places.

    The map is read once instead of twice, the means are of M channels instead of C, and there is one kernel
    less. With means as depthwise convolutions h-swish is computed in their kernels. The batch norm is affine and
    changes places as well, while it takes no statistics.
    """

    def __init__(self, source: CoordinateAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        if form == "squeezed_conv":
            squeezed, like = source.conv1.out_channels, source.conv1.weight
            self.pool_h = MeanConv(squeezed, None, width, like)
            self.pool_w = MeanConv(squeezed, height, None, like)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        squeezed = self.conv1(x)  # (N, M, H, W)
        if self.bn1.training:
            rows, columns = self._joined_norm(self.pool_h(squeezed), self.pool_w(squeezed))
        else:
            squeezed = self.bn1(squeezed)
            rows, columns = self.pool_h(squeezed), self.pool_w(squeezed)
        return self._gate(x, self.act(rows), self.act(columns))


class _ConcatCoord(_CoordEdge):
    """The authors' order with reshapes for the transposes: one squeeze for both directions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        columns = self.pool_w(x).reshape(-1, self.channels, self.width, 1)
        joined = torch.cat([self.pool_h(x), columns], dim=2)  # (N, C, H + W, 1)
        squeezed = self.act(self.bn1(self.conv1(joined)))
        rows, columns = self._part(squeezed, self.conv1.out_channels)
        return self._gate(x, rows, columns)


class _JointCoord(_CoordLayers):
    """Both gates from one convolution with stacked weights over the joined maps, and cut out behind it.

    Half of what that convolution computes is thrown away; it works on H + W positions only, and two kernels
    less matter more where launching kernels is what takes the time.
    """

    def __init__(self, source: CoordinateAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.conv = StackedConv(self.conv2, self.conv3)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        channels, height, width = self.channels, self.height, self.width
        # (N, C, 1, W) -> (N, C, W, 1) keeps the order of the elements: a reshape, not a transpose.
        columns = self.pool_w(x).reshape(-1, channels, width, 1)
        joined = torch.cat([self.pool_h(x), columns], dim=2)  # (N, C, H + W, 1)
        gates = self.sigmoid(self.conv(self.act(self.bn1(self.conv1(joined)))))  # (N, 2C, H + W, 1)
        gate_h = gates.narrow(1, 0, channels).narrow(2, 0, height)
        gate_w = gates.narrow(1, channels, channels).narrow(2, height, width)
        gated: torch.Tensor = x * gate_w.reshape(-1, channels, 1, width) * self.apply_factor(gate_h)
        return gated
