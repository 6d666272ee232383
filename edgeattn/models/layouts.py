"""The key layouts in which checkpoints of these networks exist.

A layout is a rule that renames the modules of the network at hand:

``edgeattn``
    The network's own keys. A bare MobileNetV2 or EfficientNet has torchvision's, and inserted attention
    is a named child (``features.2.conv.attention``), so a bare checkpoint fits a network with attention.
``bare``
    As before attention was inserted where the parent is no Sequential: without the ``body.`` of
    `edgeattn.models.tree.Followed` (timm's blocks).
``indexed``
    Every child of a Sequential has its position as its name, inserted attention included:
    ``features.2.conv.4.conv.weight``. The MobileNetV2 of the ECA and of the Triplet Attention authors.
``flattened``
    Positions, and each block's ``conv`` lists convolutions, norms and activations one by one
    (``features.2.conv.6.conv1.weight``); the last 1x1 convolution is ``conv`` instead of the last
    feature. The MobileNetV2 of the Coordinate Attention authors.

Within an attention module, the other names that its authors use are known as its `key_aliases`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from edgeattn.attention.base import Attention, Gated
from edgeattn.models.tree import Followed, is_chain

__all__ = ["LAYOUTS", "key_candidates"]

LAYOUTS = ("edgeattn", "bare", "indexed", "flattened")


def _child_names(module: nn.Module, own: str, layout: str) -> dict[str, str]:
    """Return own relative path -> relative path in the layout, for what `module` calls directly.

    An empty name on the right means that the child takes the module's own name.
    """
    names = {name: name for name, _ in module.named_children()}
    if layout == "edgeattn" or isinstance(module, Gated):
        return names
    if isinstance(module, Followed):
        return {**names, "body": ""}
    if layout == "bare" or not is_chain(module):
        return names
    if layout == "flattened" and own.endswith(".conv"):
        position, flat = 0, {}
        for name, child in module.named_children():
            inner = [inner_name for inner_name, _ in child.named_children()] if is_chain(child) else []
            for inner_name in inner:
                flat[f"{name}.{inner_name}"] = str(position)
                position += 1
            if not inner:
                flat[name] = str(position)
                position += 1
        return flat
    return {name: str(index) for index, name in enumerate(names)}


def _module_names(model: nn.Module, layout: str) -> dict[str, str]:
    """Return own module path -> path in the layout."""
    renamed = {"": ""}

    def visit(module: nn.Module, own: str, theirs: str) -> None:
        for relative, name in _child_names(module, own, layout).items():
            child_own = f"{own}.{relative}" if own else relative
            child_theirs = ".".join(part for part in (theirs, name) if part)
            if layout == "flattened" and own == "features" and name == str(len(list(module.children())) - 1):
                child_theirs = "conv"
            renamed[child_own] = child_theirs
            visit(module.get_submodule(relative), child_own, child_theirs)

    visit(model, "", "")
    return renamed


def key_candidates(model: nn.Module, layout: str) -> dict[str, list[str]]:
    """Return, for every key of the network's state dict, the spellings it can have in a layout.

    A gain, which a state dict has only where it is not 1, is always included.
    """
    modules = _module_names(model, layout)
    keys = list(model.state_dict(keep_vars=True))
    candidates: dict[str, list[str]] = {}
    for key in keys:
        owner, _, leaf = key.rpartition(".")
        theirs = modules.get(owner, owner)
        candidates[key] = [f"{theirs}.{leaf}" if theirs else leaf]
    for path, module in model.named_modules():
        if not isinstance(module, Gated):
            continue
        prefix = f"{path}." if path else ""
        theirs = f"{modules[path]}." if modules[path] else ""
        candidates.setdefault(f"{prefix}gain", [f"{theirs}gain"])
        for alias, own in _aliases(module).items():
            for key in keys:
                if key.startswith(prefix + own):
                    candidates[key].append(theirs + alias + key[len(prefix + own) :])
    return candidates


def _aliases(module: Gated) -> Mapping[str, str]:
    return module.key_aliases if isinstance(module, Attention) else {}
