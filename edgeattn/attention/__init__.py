"""The attention mechanisms: what there is, and how to make one.

This module imports without torch, so that tools can list mechanisms on a machine that only runs
engines. `create_attention` imports the mechanism's own module when it is called.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any, cast

from edgeattn.attention import (
    listed_branch,
    listed_channel,
    listed_channel_spatial,
    listed_fusion,
    listed_spatial,
    listed_temporal,
)
from edgeattn.attention.info import AttentionInfo, Contract
from edgeattn.errors import RecipeError, close_matches_hint
from edgeattn.extras import require
from edgeattn.registry import Registry

if TYPE_CHECKING:
    from edgeattn.attention.base import Attention

__all__ = ["AttentionInfo", "attention_options", "attentions", "create_attention", "mechanism_class"]

_USES: dict[Contract, str] = {
    "convolution": "it takes the place of a convolution, see edgeattn.models.replace_convolutions",
    "front": "it precedes a network, and is made from its class",
    "fusion": "it takes several maps, and is made from its class",
    "sequence": "it takes sequences, and is made from its class",
    "criterion": "it is a loss for training, and is made from its class",
}
"""What to do with mechanisms of other contracts, for messages."""


attentions: Registry[AttentionInfo] = Registry("attention")

for _entries in (
    listed_channel.ENTRIES,
    listed_spatial.ENTRIES,
    listed_channel_spatial.ENTRIES,
    listed_branch.ENTRIES,
    listed_temporal.ENTRIES,
    listed_fusion.ENTRIES,
):
    for _entry in _entries:
        attentions.register(_entry.name, _entry)


def mechanism_class(name: str) -> type[Any]:
    """Return the class of a mechanism, of any contract (needs torch).

    Raises:
        RecipeError: If there is no such mechanism.
    """
    info = attentions.get(name)
    require("torch", purpose=f"the attention {name!r}")
    module_name, class_name = info.module.split(":")
    return cast("type[Any]", getattr(importlib.import_module(module_name), class_name))


def attention_options(name: str) -> dict[str, Any]:
    """Return the options of a mechanism with their defaults (needs torch).

    Raises:
        RecipeError: If there is no such mechanism.
    """
    parameters = inspect.signature(mechanism_class(name)).parameters
    return {
        key: value.default
        for key, value in parameters.items()
        if value.kind is inspect.Parameter.KEYWORD_ONLY
    }


def create_attention(name: str, channels: int, **options: Any) -> Attention:
    """Make an attention module for maps of `channels` channels, of the contract ``"map"``.

    Mechanisms of other contracts are made from their class, see `mechanism_class`.

    Args:
        name: A name in `attentions`.
        channels: Channels of the map (N, C, H, W) it will gate.
        **options: The mechanism's own options, see `attention_options`.

    Raises:
        RecipeError: If the name is unknown, the mechanism takes something else than one map, or an option's
            value is not valid.
        TypeError: If an option is unknown.
    """
    info = attentions.get(name)
    if info.contract != "map":
        raise RecipeError(f"The attention {name!r} does not go from a map to a map: {_USES[info.contract]}.")
    cls = mechanism_class(name)
    known = attention_options(name)
    for option in options:
        if option not in known:
            hint = close_matches_hint(option, known)
            raise TypeError(f"The attention {name!r} has no option {option!r}. {hint}")
    return cast("Attention", cls(channels, **options))
