"""Parameters and multiply-accumulates of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgeattn.attention.layers import DerivedConv2d
from edgeattn.models.tree import evaluating, zeros_like_parameters

__all__ = ["count_macs", "count_parameters"]


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, counting a shared one once and buffers not at all."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Return the multiply-accumulates of all convolutions and linear layers for one forward pass.

    Element-wise operations, pools and normalization are not counted, as is usual in the literature.

    Args:
        model: The network; runs once on zeros, in evaluation mode.
        input_shape: Shape of the input with its batch, such as (1, 3, 224, 224).
    """
    total = 0

    def count(module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
            return
        weight = module.derived_weight() if isinstance(module, DerivedConv2d) else module.weight
        if isinstance(weight, torch.Tensor):
            # Each output element is a dot product with one filter.
            total += output.numel() * weight[0].numel()

    counted = (nn.Conv1d, nn.Conv2d, nn.Linear, DerivedConv2d)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, counted)]
    try:
        with evaluating(model), torch.no_grad():
            model(zeros_like_parameters(model, input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return total
