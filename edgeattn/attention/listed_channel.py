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
        name="gsop",
        title="Global Second-Order Pooling",
        paper="1811.12006",
        module="edgeattn.attention.gsop:SecondOrderPooling",
        family="channel",
        placement="output",
        edge_forms=(
            "pool_conv",
            "mean_conv",
        ),
        default_form="pool_conv",
        gates=True,
    ),
    AttentionInfo(
        name="srm",
        title="Style-based Recalibration",
        paper="1903.10829",
        module="edgeattn.attention.srm:StyleRecalibration",
        family="channel",
        placement="output",
        edge_forms=(
            "pool_conv",
            "mean_conv",
        ),
        default_form="pool_conv",
        gates=True,
    ),
    AttentionInfo(
        name="gct",
        title="Gated Channel Transformation",
        paper="1909.11519",
        module="edgeattn.attention.gct:GatedChannelTransformation",
        family="channel",
        placement="output",
        edge_forms=(
            "pool",
            "mean",
        ),
        default_form="pool",
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
    AttentionInfo(
        name="fca",
        title="Frequency Channel Attention",
        paper="2012.11879",
        module="edgeattn.attention.fca:FrequencyChannelAttention",
        family="channel",
        placement="output",
        edge_forms=("depthwise_dct",),
        default_form="depthwise_dct",
        reads_size=True,
        gates=True,
    ),
    AttentionInfo(
        name="enc",
        title="Context Encoding",
        paper="1803.08904",
        module="edgeattn.attention.enc:ContextEncoding",
        family="channel",
        placement="output",
        edge_forms=("two_convs",),
        default_form="two_convs",
        gates=True,
    ),
    AttentionInfo(
        name="ge",
        title="Gather-Excite",
        paper="1810.12348",
        module="edgeattn.attention.gather_excite:GatherExcite",
        family="channel",
        placement="output",
        edge_forms=("static",),
        default_form="static",
        reads_size=True,
        gates=True,
    ),
)
