"""The channel mechanisms."""

from __future__ import annotations

from edgeattn.attention.info import AttentionInfo

__all__ = ["ENTRIES"]

ENTRIES: tuple[AttentionInfo, ...] = (
    AttentionInfo(
        name="se",
        title="Squeeze-and-Excitation",
        paper="1709.01507",
        module="edgeattn.attention.se:SqueezeExcitation",
        family="channel",
        placement="hidden",
        edge_forms=("pool_conv", "mean_conv"),
        default_form="pool_conv",
        gates=True,
    ),
    AttentionInfo(
        name="eca",
        title="Efficient Channel Attention",
        paper="1910.03151",
        module="edgeattn.attention.eca:EfficientChannelAttention",
        family="channel",
        placement="output",
        edge_forms=("banded_conv", "banded_conv_mean", "row_conv", "row_conv_mean"),
        default_form="banded_conv",
        gates=True,
    ),
)
