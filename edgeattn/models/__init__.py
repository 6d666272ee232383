"""Networks, where attention goes in them, and their weights.

The list of architectures can be read without torch; every function imports what it needs when it is
first used.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from edgeattn.extras import require
from edgeattn.registry import Registry

if TYPE_CHECKING:
    from edgeattn.models.checkpoints import LoadReport, load_weights, save_weights
    from edgeattn.models.create import create_model
    from edgeattn.models.edge import absorb_gains, to_edge_form
    from edgeattn.models.insertion import insert_attention
    from edgeattn.models.replacement import replace_convolutions
    from edgeattn.models.stats import count_macs, count_parameters

__all__ = [
    "ArchitectureInfo",
    "LoadReport",
    "absorb_gains",
    "architectures",
    "count_macs",
    "count_parameters",
    "create_model",
    "insert_attention",
    "load_weights",
    "replace_convolutions",
    "save_weights",
    "to_edge_form",
]


@dataclasses.dataclass(frozen=True)
class ArchitectureInfo:
    """What is known about an architecture without importing it.

    Attributes:
        name: Name in recipes.
        title: Name in prose.
        paper: arXiv identifier.
        activations: Activations it can be built with; the first is its own.
        input_size: Height and width it was designed for.
        has_se: Whether its blocks contain Squeeze-and-Excitation.
        module: ``"package.module:function"``.
    """

    name: str
    title: str
    paper: str
    activations: tuple[str, ...]
    input_size: int
    has_se: bool
    module: str


architectures: Registry[ArchitectureInfo] = Registry("architecture")

architectures.register(
    "mobilenet_v2",
    ArchitectureInfo(
        name="mobilenet_v2",
        title="MobileNetV2",
        paper="1801.04381",
        activations=("relu6", "relu", "h_swish"),
        input_size=224,
        has_se=False,
        module="edgeattn.models.mobilenet_v2:MobileNetV2",
    ),
)
architectures.register(
    "efficientnet_b0",
    ArchitectureInfo(
        name="efficientnet_b0",
        title="EfficientNet-B0",
        paper="1905.11946",
        activations=("swish", "h_swish"),
        input_size=224,
        has_se=True,
        module="edgeattn.models.efficientnet:EfficientNetB0",
    ),
)
architectures.register(
    "efficientnet_lite0",
    ArchitectureInfo(
        name="efficientnet_lite0",
        title="EfficientNet-Lite0",
        paper="1905.11946",
        activations=("relu6",),
        input_size=224,
        has_se=False,
        module="edgeattn.models.efficientnet:EfficientNetLite0",
    ),
)

_HOME = {
    "LoadReport": "checkpoints",
    "load_weights": "checkpoints",
    "save_weights": "checkpoints",
    "create_model": "create",
    "absorb_gains": "edge",
    "to_edge_form": "edge",
    "insert_attention": "insertion",
    "replace_convolutions": "replacement",
    "count_macs": "stats",
    "count_parameters": "stats",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("torch", purpose=f"edgeattn.models.{name}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
