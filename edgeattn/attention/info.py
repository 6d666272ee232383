"""What is known about a mechanism without importing it, and so without torch."""

from __future__ import annotations

import dataclasses
from typing import Literal

__all__ = ["FAMILIES", "AttentionInfo", "Contract", "Family"]

Family = Literal["channel", "spatial", "channel_spatial", "branch", "temporal", "fusion"]
Contract = Literal["map", "convolution", "front", "fusion", "sequence", "criterion"]

FAMILIES: tuple[Family, ...] = ("channel", "spatial", "channel_spatial", "branch", "temporal", "fusion")


@dataclasses.dataclass(frozen=True)
class AttentionInfo:
    """What is known about a mechanism without importing it.

    Attributes:
        name: Name in recipes, such as ``"coord"``.
        title: Name in prose.
        paper: arXiv identifier, or the venue where there is none.
        module: ``"package.module:Class"``.
        family: What it attends over; the catalogue is sorted by it.
        contract: How it is used. ``"map"``: (N, C, H, W) in and out, can be inserted anywhere.
            ``"convolution"``: takes the place of one. ``"front"``: precedes the network. ``"fusion"``:
            takes several maps. ``"sequence"``: takes other ranks. ``"criterion"``: a loss.
        placement: Where its authors put it in an inverted residual block. ``"hidden"``: after the depthwise
            batch norm and activation, before the projection, not in blocks that do not expand.
            ``"output"``: after the projection's batch norm, before the residual add.
        edge_forms: Names of the fixed-size forms; all compute the same function.
        default_form: The form used where none is asked for.
        reads_size: Whether the gate depends on where in the map something is, not only on global pools.
        gates: Whether the result is the input times values of a gate.
        no_edge_form_reason: Why there is no fixed-size form, where `edge_forms` is empty.
        example: ``"package.module:function"`` that makes the small real network that stands for the
            mechanism in measurements (`edgeattn.models.example.Example`); empty for the contracts ``"map"``
            and ``"convolution"``, which are measured by themselves and in MobileNetV2.
    """

    name: str
    title: str
    paper: str
    module: str
    family: Family
    contract: Contract = "map"
    placement: Literal["hidden", "output"] = "output"
    edge_forms: tuple[str, ...] = ()
    default_form: str = ""
    reads_size: bool = False
    gates: bool = False
    no_edge_form_reason: str = ""
    example: str = ""
