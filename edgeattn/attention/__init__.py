"""The attention mechanisms: what there is, and how to make one.

This module imports without torch, so that tools can list mechanisms on a machine that only runs
engines. `create_attention` imports the mechanism's own module when it is called.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import TYPE_CHECKING, Any, Literal, cast

from edgeattn.errors import close_matches_hint
from edgeattn.extras import require
from edgeattn.registry import Registry

if TYPE_CHECKING:
    from edgeattn.attention.base import Attention

__all__ = ["AttentionInfo", "attention_options", "attentions", "create_attention"]


@dataclasses.dataclass(frozen=True)
class AttentionInfo:
    """What is known about a mechanism without importing it.

    Attributes:
        name: Name in recipes, such as ``"coord"``.
        title: Name in prose.
        paper: arXiv identifier.
        placement: Where its authors put it in an inverted residual block. ``"hidden"``: after the depthwise
            batch norm and activation, before the projection, not in blocks that do not expand.
            ``"output"``: after the projection's batch norm, before the residual add.
        edge_forms: Names of the fixed-size forms; all compute the same function.
        default_form: The form used where none is asked for.
        module: ``"package.module:Class"``.
        reads_size: Whether the gate depends on where in the map something is, not only on global pools.
    """

    name: str
    title: str
    paper: str
    placement: Literal["hidden", "output"]
    edge_forms: tuple[str, ...]
    default_form: str
    module: str
    reads_size: bool = False


attentions: Registry[AttentionInfo] = Registry("attention")

attentions.register(
    "eca",
    AttentionInfo(
        name="eca",
        title="Efficient Channel Attention",
        paper="1910.03151",
        placement="output",
        edge_forms=("banded_conv", "banded_conv_mean", "row_conv", "row_conv_mean"),
        default_form="banded_conv",
        module="edgeattn.attention.eca:EfficientChannelAttention",
    ),
)
attentions.register(
    "coord",
    AttentionInfo(
        name="coord",
        title="Coordinate Attention",
        paper="2103.02907",
        placement="hidden",
        edge_forms=(
            "two_branch_pool",
            "two_branch_mean",
            "concat_reshape",
            "concat_reshape_mean",
            "joint_pool",
            "joint_mean",
        ),
        default_form="two_branch_pool",
        module="edgeattn.attention.coord:CoordinateAttention",
        reads_size=True,
    ),
)
attentions.register(
    "triplet",
    AttentionInfo(
        name="triplet",
        title="Triplet Attention",
        paper="2010.03045",
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
        module="edgeattn.attention.triplet:TripletAttention",
        reads_size=True,
    ),
)
attentions.register(
    "se",
    AttentionInfo(
        name="se",
        title="Squeeze-and-Excitation",
        paper="1709.01507",
        placement="hidden",
        edge_forms=("pool_conv", "mean_conv"),
        default_form="pool_conv",
        module="edgeattn.attention.se:SqueezeExcitation",
    ),
)
attentions.register(
    "cbam",
    AttentionInfo(
        name="cbam",
        title="Convolutional Block Attention Module",
        paper="1807.06521",
        placement="hidden",
        edge_forms=("pool_conv", "mean_conv", "short_axis_pool", "short_axis_mean"),
        default_form="pool_conv",
        module="edgeattn.attention.cbam:ConvolutionalBlockAttention",
        reads_size=True,
    ),
)


def _attention_class(info: AttentionInfo) -> type[Attention]:
    require("torch", purpose=f"the attention {info.name!r}")
    module_name, class_name = info.module.split(":")
    return cast("type[Attention]", getattr(importlib.import_module(module_name), class_name))


def attention_options(name: str) -> dict[str, Any]:
    """Return the options of a mechanism with their defaults (needs torch).

    Raises:
        RecipeError: If there is no such mechanism.
    """
    parameters = inspect.signature(_attention_class(attentions.get(name))).parameters
    return {key: value.default for key, value in parameters.items() if key != "channels"}


def create_attention(name: str, channels: int, **options: Any) -> Attention:
    """Make an attention module for maps of `channels` channels.

    Args:
        name: A name in `attentions`.
        channels: Channels of the map (N, C, H, W) it will gate.
        **options: The mechanism's own options, see `attention_options`.

    Raises:
        RecipeError: If the name is unknown or an option's value is not valid.
        TypeError: If an option is unknown.
    """
    cls = _attention_class(attentions.get(name))
    known = attention_options(name)
    for option in options:
        if option not in known:
            hint = close_matches_hint(option, known)
            raise TypeError(f"The attention {name!r} has no option {option!r}. {hint}")
    return cls(channels, **options)
