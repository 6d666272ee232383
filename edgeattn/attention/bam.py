"""Bottleneck Attention Module (arXiv 1807.06514; authors' code: Jongchan/attention-module).

``y = x + x * sigmoid(Mc(x) + Ms(x))``. Mc (N, C, 1, 1): mean over the map, fully connected to C / reduction,
batch norm, ReLU, fully connected back. Ms (N, 1, H, W): 1x1 convolution to C / reduction, two 3x3 convolutions
of dilation 4 there, each with batch norm and ReLU, and a 1x1 convolution to one channel.

Deviations: the authors' code multiplies Mc and Ms where the paper adds them; here they are added. The paper
writes a batch norm at the end of Mc, their code has it behind the first layer; here as in their code. The fully
connected layers are 1x1 convolutions under the same keys, and 2-D weights are accepted when loading. The
reduced width is at least 1.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from edgeattn.attention.base import Attention
from edgeattn.attention.cbam import PointwiseLinear
from edgeattn.attention.layers import make_average
from edgeattn.attention.mapwise import check_count, zero_layer

__all__ = ["BottleneckAttention"]


class _Part(nn.Module):
    """Holds a gate's layers under the authors' key."""

    def __init__(self, key: str, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__()
        self.add_module(key, nn.Sequential(layers))


class BottleneckAttention(Attention):
    """BAM, keys ``channel_att.gate_c.*`` and ``spatial_att.gate_s.*``.

    Args:
        channels: Channels of the map.
        reduction: Ratio of `channels` to the width inside both gates.
        dilation: Of the 3x3 convolutions.
        layers: How many 3x3 convolutions there are.

    Raises:
        RecipeError: If an option is not positive.
    """

    kind = "bam"

    def __init__(self, channels: int, *, reduction: int = 16, dilation: int = 4, layers: int = 2) -> None:
        super().__init__(channels)
        inner = max(1, channels // check_count("bam", "reduction", reduction))
        check_count("bam", "dilation", dilation)
        check_count("bam", "layers", layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        gate_c: OrderedDict[str, nn.Module] = OrderedDict()
        gate_c["gate_c_fc_0"] = PointwiseLinear(channels, inner)
        gate_c["gate_c_bn_1"] = nn.BatchNorm2d(inner)
        gate_c["gate_c_relu_1"] = nn.ReLU()
        gate_c["gate_c_fc_final"] = PointwiseLinear(inner, channels)
        gate_s: OrderedDict[str, nn.Module] = OrderedDict()
        gate_s["gate_s_conv_reduce0"] = nn.Conv2d(channels, inner, 1)
        gate_s["gate_s_bn_reduce0"] = nn.BatchNorm2d(inner)
        gate_s["gate_s_relu_reduce0"] = nn.ReLU()
        for i in range(layers):
            gate_s[f"gate_s_conv_di_{i}"] = nn.Conv2d(inner, inner, 3, padding=dilation, dilation=dilation)
            gate_s[f"gate_s_bn_di_{i}"] = nn.BatchNorm2d(inner)
            gate_s[f"gate_s_relu_di_{i}"] = nn.ReLU()
        gate_s["gate_s_conv_final"] = nn.Conv2d(inner, 1, 1)
        self.channel_att = _Part("gate_c", gate_c)
        self.spatial_att = _Part("gate_s", gate_s)
        self.sigmoid = nn.Sigmoid()

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`; also the edge form's formula."""
        logits = self.channel_att.gate_c(self.pool(x)) + self.spatial_att.gate_s(x)
        gate: torch.Tensor = self.sigmoid(logits) + 1.0
        return x * self.apply_factor(gate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        return self.compute(x)

    def _layer(self, key: str) -> Any:
        return self.get_submodule(key)

    def _zero_gates(self) -> float:
        zero_layer(self._layer("channel_att.gate_c.gate_c_fc_final"))
        zero_layer(self._layer("spatial_att.gate_s.gate_s_conv_final"))
        return 1.5

    def map_reading_weights(self) -> list[torch.Tensor]:
        """Return the first weights of both gates."""
        return [
            self._layer("channel_att.gate_c.gate_c_fc_0").weight,
            self._layer("spatial_att.gate_s.gate_s_conv_reduce0").weight,
        ]

    def _static_parts(self, height: int, width: int, form: str) -> dict[str, nn.Module]:
        return {"pool": make_average(form == "pool_conv", height, width)}
