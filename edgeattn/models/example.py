"""A small real network for every mechanism, to test and to measure it with."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from edgeattn.attention import attentions, create_attention, mechanism_class

__all__ = ["Example", "InBlock", "draw_maps", "make_example", "wake"]


_PATTERNS = 8


@dataclasses.dataclass(frozen=True)
class Example:
    """A mechanism in use.

    Attributes:
        network: A network that holds it: one float input (N, C, H, W), one output tensor.
        input_shape: Of the network, batch 1.
        module: The mechanism alone.
        inputs: What the mechanism takes, batch 2: tensors, or lists of tensors.
        bare: The same network without it, where there is such a thing: what it is compared with.
        alone: What is measured instead of a network whose backbone would hide the mechanism: the mechanism behind
            plain convolutions of one map. None: the network itself.
        alone_shape: Of the map that `alone` takes, batch 1.
    """

    network: nn.Module
    input_shape: tuple[int, int, int, int]
    module: nn.Module
    inputs: tuple[Any, ...]
    bare: nn.Module | None = None
    alone: nn.Module | None = None
    alone_shape: tuple[int, int, int, int] | None = None


class InBlock(nn.Module):
    """A mechanism (``attention``) before the 1x1 convolution (``projection``) that reads it.

    Attributes:
        in_channels: Of the map that it takes.
    """

    def __init__(self, attention: nn.Module | None, projection: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels = projection.in_channels
        self.attention = attention
        self.projection = projection

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute both for `x`, shape (N, C, H, W)."""
        y: torch.Tensor = self.projection(x if self.attention is None else self.attention(x))
        return y


def make_example(name: str, channels: int = 32, size: int = 14, *, seed: int = 0, **options: Any) -> Example:
    """Make the example of any mechanism.

    A mechanism of the contract ``"map"`` or ``"convolution"`` stands before a 1x1 convolution, as in an
    inverted residual block; others bring an example of their own, see `AttentionInfo.example`.

    Args:
        name: A name in `edgeattn.attention.attentions`.
        channels: Channels of the map, for the contracts ``"map"`` and ``"convolution"``.
        size: Height and width of the map, for the same.
        seed: Of weights and inputs.
        **options: The mechanism's own options, for the same.

    Raises:
        RecipeError: If there is no such mechanism, or an option's value is not valid.
    """
    info = attentions.get(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if info.example:
            module_name, function = info.example.split(":")
            return cast(Example, getattr(importlib.import_module(module_name), function)())
        if info.contract == "map":
            module: nn.Module = create_attention(name, channels, **options)
        else:
            module = mechanism_class(name)(channels, channels, **options)
        projection = nn.Conv2d(channels, channels, 1)
        return Example(
            network=InBlock(module, projection),
            input_shape=(1, channels, size, size),
            module=module,
            inputs=(torch.randn(2, channels, size, size),),
            bare=InBlock(None, projection),
        )


def draw_maps(shape: Sequence[int], *, seed: int = 0) -> torch.Tensor:
    """Return random maps that vary smoothly over space and go together over channels, as features do.

    White noise would not do: its correlations and its means are zero but for chance, and what reads them
    would be measured on nothing.

    Args:
        shape: (N, C, H, W). How channels depend on the patterns is the same for every seed.
        seed: Of the patterns.

    Returns:
        Values of about unit variance.
    """
    count, channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(channels)
    mixing = torch.randn(channels, _PATTERNS, generator=fixed) / math.sqrt(_PATTERNS)
    offset = 0.5 * torch.randn(1, channels, 1, 1, generator=fixed)
    coarse = torch.randn(count, _PATTERNS, 4, 4, generator=generator)
    smooth = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    noise = torch.randn(count, channels, height, width, generator=generator)
    return torch.einsum("cp,nphw->nchw", mixing, smooth) + offset + 0.3 * noise


def wake(module: nn.Module, *, seed: int = 0) -> None:
    """Give values to parameters that start at zero, in place, as training would.

    A residual scale that starts at 0, or a batch norm whose weight does, hides all that lies before it; a
    network that is measured must not be one that computes nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not parameter.numel() or parameter.any() or name.endswith("bias"):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                # A layer, such as that of deformable offsets: outputs as large as inputs, and no larger.
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.5 + 0.25 * noise)
