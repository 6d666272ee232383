"""The attention modules of a network, as regions of its graph."""

from __future__ import annotations

from torch import nn

from edgeattn.attention.base import EdgeForm
from edgeattn.quant.config import GatePolicy
from edgeattn.quant.placement import GateRegion

__all__ = ["gate_regions"]


def gate_regions(edge: nn.Module, policy: GatePolicy) -> list[GateRegion]:
    """Return a region with `policy` for every attention module of a network in edge form."""
    return [
        GateRegion(path.replace(".", "/"), policy)
        for path, module in edge.named_modules()
        if isinstance(module, EdgeForm)
    ]
