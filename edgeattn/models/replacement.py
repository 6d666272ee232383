"""Put attention that is a convolution (its contract is ``"convolution"``) in the place of one."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from edgeattn.attention import attention_options, attentions, mechanism_class
from edgeattn.attention.base import ConvolutionAttention
from edgeattn.errors import ModelError, RecipeError, close_matches_hint
from edgeattn.models.tree import split_path

__all__ = ["replace_convolutions"]


def replace_convolutions(
    model: nn.Module, kind: str, *, where: str | Sequence[str] = "depthwise", **options: Any
) -> nn.Module:
    """Return a copy of `model` with some convolutions replaced; the model given stays as it is.

    The new layers have the shapes of the old ones and begin with their weights, as far as they have a place for
    them; what else they compute is to be trained.

    Args:
        model: Any network.
        kind: A name in `edgeattn.attention.attentions` of the contract ``"convolution"``.
        where: ``"depthwise"``: every depthwise convolution; otherwise module paths of convolutions, in which
            each part may be a pattern.
        **options: The mechanism's own options.

    Raises:
        RecipeError: If the kind, a path or an option's value is not valid.
        TypeError: If an option is unknown.
        ModelError: If there is no such convolution, or one that cannot be replaced.
    """
    info = attentions.get(kind)
    if info.contract != "convolution":
        raise RecipeError(f"The attention {kind!r} does not take the place of a convolution.")
    known = attention_options(kind)
    for option in options:
        if option not in known or option in ("stride", "groups"):
            hint = close_matches_hint(option, [name for name in known if name not in ("stride", "groups")])
            raise TypeError(f"The attention {kind!r} has no option {option!r}. {hint}")
    result = copy.deepcopy(model)
    cls = cast(type[ConvolutionAttention], mechanism_class(kind))
    for path in _convolutions(result, where):
        old = result.get_submodule(path)
        if not isinstance(old, nn.Conv2d):
            raise RecipeError(f"{path!r} is a {type(old).__name__}; only a convolution can be replaced.")
        new = cls(
            old.in_channels,
            old.out_channels,
            _odd_kernel(path, old),
            stride=old.stride[0],
            groups=old.groups,
            **options,
        )
        parent, name = split_path(path)
        new = new.to(old.weight).train(old.training)
        new.begin_with(old.weight.detach())
        setattr(result.get_submodule(parent), name, new)
    return result


def _convolutions(model: nn.Module, where: str | Sequence[str]) -> list[str]:
    inside = [path for path, module in model.named_modules() if isinstance(module, ConvolutionAttention)]
    convs = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not any(path.startswith(f"{outer}.") for outer in inside)
    }
    if where == "depthwise":
        found = [path for path, conv in convs.items() if 1 < conv.groups == conv.in_channels]
    else:
        patterns = [where] if isinstance(where, str) else list(where)
        found = [path for path in convs if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)]
    if not found:
        raise ModelError(f"There is no convolution {where!r} in {type(model).__name__}.")
    return found


def _odd_kernel(path: str, conv: nn.Conv2d) -> int:
    """Return the kernel size of a convolution that keeps its map's size at stride 1."""
    size = conv.kernel_size[0]
    plain = (
        conv.kernel_size == (size, size)
        and conv.stride[0] == conv.stride[1]
        and conv.dilation == (1, 1)
        and conv.padding == (size // 2, size // 2)
        and conv.padding_mode == "zeros"
        and conv.bias is None
    )
    if not plain or size % 2 == 0:
        raise ModelError(
            f"The convolution at {path!r} ({conv}) cannot be replaced: expected an odd square kernel without "
            "dilation and bias, and half a kernel of padding."
        )
    return size
