"""The mechanisms over branches."""

from __future__ import annotations

from edgeattn.attention.info import AttentionInfo

__all__ = ["ENTRIES"]

ENTRIES: tuple[AttentionInfo, ...] = (
    AttentionInfo(
        name="highway",
        title="Highway",
        paper="1505.00387",
        module="edgeattn.attention.highway:Highway",
        family="branch",
        placement="output",
        edge_forms=("static",),
        default_form="static",
        reads_size=True,
    ),
    AttentionInfo(
        name="sk",
        title="Selective Kernel",
        paper="1903.06586",
        module="edgeattn.attention.sk:SelectiveKernel",
        family="branch",
        contract="convolution",
        placement="hidden",
        edge_forms=(
            "pool",
            "mean",
        ),
        default_form="pool",
        reads_size=True,
    ),
    AttentionInfo(
        name="condconv",
        title="CondConv",
        paper="1904.04971",
        module="edgeattn.attention.condconv:ConditionalConvolution",
        family="branch",
        contract="convolution",
        placement="hidden",
        edge_forms=(
            "parallel",
            "parallel_mean",
        ),
        default_form="parallel",
        reads_size=True,
    ),
    AttentionInfo(
        name="dynamicconv",
        title="Dynamic Convolution",
        paper="1912.03458",
        module="edgeattn.attention.dynamicconv:DynamicConvolution",
        family="branch",
        contract="convolution",
        placement="hidden",
        edge_forms=(
            "parallel",
            "parallel_mean",
        ),
        default_form="parallel",
        reads_size=True,
    ),
)
