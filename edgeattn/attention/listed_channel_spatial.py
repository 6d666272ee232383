"""The mechanisms over channels and space."""

from __future__ import annotations

from edgeattn.attention.info import AttentionInfo

__all__ = ["ENTRIES"]

ENTRIES: tuple[AttentionInfo, ...] = (
    AttentionInfo(
        name="cbam",
        title="Convolutional Block Attention Module",
        paper="1807.06521",
        module="edgeattn.attention.cbam:ConvolutionalBlockAttention",
        family="channel_spatial",
        placement="hidden",
        edge_forms=("pool_conv", "mean_conv", "short_axis_pool", "short_axis_mean"),
        default_form="pool_conv",
        reads_size=True,
        gates=True,
    ),
    AttentionInfo(
        name="triplet",
        title="Triplet Attention",
        paper="2010.03045",
        module="edgeattn.attention.triplet:TripletAttention",
        family="channel_spatial",
        placement="output",
        edge_forms=(
            "banded_pool",
            "banded_mean",
            "short_axis_pool",
            "short_axis_mean",
            "reshape",
            "reshape_mean",
        ),
        default_form="banded_pool",
        reads_size=True,
        gates=True,
    ),
    AttentionInfo(
        name="coord",
        title="Coordinate Attention",
        paper="2103.02907",
        module="edgeattn.attention.coord:CoordinateAttention",
        family="channel_spatial",
        placement="hidden",
        edge_forms=("two_branch_pool", "two_branch_mean", "concat_reshape", "concat_reshape_mean"),
        default_form="two_branch_pool",
        reads_size=True,
        gates=True,
    ),
)
