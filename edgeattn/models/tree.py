"""Small helpers for walking and changing module trees."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

__all__ = [
    "Followed",
    "evaluating",
    "first_leaf",
    "input_channels",
    "insert_after",
    "is_chain",
    "last_leaf",
    "siblings",
    "split_path",
    "zeros_like_parameters",
]


class Followed(nn.Sequential):
    """A module (``body``) and what was inserted after it, where the parent is no Sequential."""


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode, and back into the mode each one had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def input_channels(model: nn.Module) -> int:
    """Return the network's ``in_channels``, or those of the first convolution, 3 where there is neither."""
    own = getattr(model, "in_channels", None)
    if isinstance(own, int):
        return own
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def zeros_like_parameters(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """Return zeros on the device and with the type of the model's first parameter."""
    parameter = next(model.parameters(), None)
    return torch.zeros(shape) if parameter is None else parameter.new_zeros(shape)


def split_path(path: str) -> tuple[str, str]:
    """Split a module path into its parent's path and its own name."""
    parent, _, name = path.rpartition(".")
    return parent, name


def is_chain(module: nn.Module) -> bool:
    """Return whether the module calls its children one after another and does nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def first_leaf(module: nn.Module) -> nn.Module:
    """Return what a chain calls first."""
    while is_chain(module) and len(list(module.children())):
        module = next(module.children())
    return module


def last_leaf(module: nn.Module) -> nn.Module:
    """Return what a chain calls last."""
    while is_chain(module) and len(list(module.children())):
        module = list(module.children())[-1]
    return module


def siblings(chain: nn.Module, name: str) -> tuple[nn.Module | None, nn.Module | None]:
    """Return what stands before and after the child `name` of a chain."""
    names = [child for child, _ in chain.named_children()]
    children = list(chain.children())
    at = names.index(name)
    before = children[at - 1] if at > 0 else None
    after = children[at + 1] if at + 1 < len(children) else None
    return before, after


def insert_after(model: nn.Module, path: str, module: nn.Module) -> str:
    """Insert `module` behind the submodule at `path`; return the path it got.

    In a Sequential it becomes a named child at that position, so no other key changes. Elsewhere a
    `Followed` takes the place of the submodule, whose keys get ``body.`` in front.
    """
    parent_path, name = split_path(path)
    parent = model.get_submodule(parent_path)
    if not is_chain(parent):
        body = parent.get_submodule(name)
        followed = Followed()
        followed.training = body.training
        followed.add_module("body", body)
        followed.add_module("attention", module)
        setattr(parent, name, followed)
        return f"{path}.attention"
    taken = {child for child, _ in parent.named_children()}
    new_name = "attention" if "attention" not in taken else f"attention_{name}"
    number = 2
    while new_name in taken:
        new_name, number = f"attention_{name}_{number}", number + 1
    children = list(parent.named_children())
    for child, _ in children:
        delattr(parent, child)
    for child, value in children:
        parent.add_module(child, value)
        if child == name:
            parent.add_module(new_name, module)
    return f"{parent_path}.{new_name}" if parent_path else new_name
