"""The temporal mechanisms."""

from __future__ import annotations

from edgeattn.attention.info import AttentionInfo

__all__ = ["ENTRIES"]

ENTRIES: tuple[AttentionInfo, ...] = (
    AttentionInfo(
        name="gltr",
        title="Global-Local Temporal Representation",
        paper="1908.10049",
        module="edgeattn.attention.gltr:GlobalLocalTemporal",
        family="temporal",
        contract="sequence",
        no_edge_form_reason="it is made of static layers already: with a fixed input every shape in it is fixed",
        example="edgeattn.models.examples_sequence:gltr",
    ),
    AttentionInfo(
        name="tam",
        title="Temporal Adaptive Module",
        paper="2005.06803",
        module="edgeattn.attention.tam:TemporalAdaptive",
        family="temporal",
        contract="sequence",
        no_edge_form_reason="it is made of static layers already: with a fixed input every shape in it is fixed",
        example="edgeattn.models.examples_sequence:tam",
    ),
    AttentionInfo(
        name="gated_tcn",
        title="Gated Temporal Convolution",
        paper="2005.11650",
        module="edgeattn.attention.gated_tcn:GatedTemporalConvolution",
        family="temporal",
        contract="sequence",
        no_edge_form_reason="it is made of static layers already: with a fixed input every shape in it is fixed",
        example="edgeattn.models.examples_sequence:gated_tcn",
    ),
)
