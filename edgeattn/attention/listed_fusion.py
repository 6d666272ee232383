"""The mechanisms that fuse maps, and what trains them."""

from __future__ import annotations

from edgeattn.attention.info import AttentionInfo

__all__ = ["ENTRIES"]

ENTRIES: tuple[AttentionInfo, ...] = (
    AttentionInfo(
        name="aff",
        title="Attentional Feature Fusion",
        paper="2009.14082",
        module="edgeattn.attention.aff:AttentionalFusion",
        family="fusion",
        contract="fusion",
        no_edge_form_reason="it is made of static layers already: with a fixed input every shape in it is fixed",
        example="edgeattn.models.examples_fusion:aff",
    ),
    AttentionInfo(
        name="asff",
        title="Adaptively Spatial Feature Fusion",
        paper="1911.09516",
        module="edgeattn.attention.asff:AdaptiveSpatialFusion",
        family="fusion",
        contract="fusion",
        no_edge_form_reason="it is made of static layers already: with a fixed input every shape in it is fixed",
        example="edgeattn.models.examples_fusion:asff",
    ),
    AttentionInfo(
        name="fpn",
        title="Feature Pyramid Network",
        paper="1612.03144",
        module="edgeattn.attention.fpn:FeaturePyramid",
        family="fusion",
        contract="fusion",
        no_edge_form_reason="it is made of static layers already: with a fixed input every shape in it is fixed",
        example="edgeattn.models.examples_fusion:fpn",
    ),
    AttentionInfo(
        name="panet",
        title="Path Aggregation Network",
        paper="1803.01534",
        module="edgeattn.attention.panet:PathAggregation",
        family="fusion",
        contract="fusion",
        no_edge_form_reason="it is made of static layers already: with a fixed input every shape in it is fixed",
        example="edgeattn.models.examples_fusion:panet",
    ),
    AttentionInfo(
        name="proto_align",
        title="Prototype Alignment",
        paper="1908.06391",
        module="edgeattn.attention.proto_align:PrototypeAlignment",
        family="fusion",
        contract="criterion",
        no_edge_form_reason="it is computed in training only",
        example="edgeattn.models.examples_fusion:proto_align",
    ),
    AttentionInfo(
        name="info_nce",
        title="InfoNCE",
        paper="2002.05709",
        module="edgeattn.attention.info_nce:InfoNce",
        family="fusion",
        contract="criterion",
        no_edge_form_reason="it is computed in training only",
        example="edgeattn.models.examples_fusion:info_nce",
    ),
)
