"""From a float network to its fixed-size edge form, and gains into neighbouring layers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from edgeattn.attention import attentions
from edgeattn.attention.base import Attention, Mechanism
from edgeattn.errors import ModelError, RecipeError, close_matches_hint
from edgeattn.models.blocks import ExplicitSwish
from edgeattn.models.tree import (
    evaluating,
    first_leaf,
    input_channels,
    is_chain,
    last_leaf,
    siblings,
    split_path,
    zeros_like_parameters,
)

__all__ = ["absorb_gains", "to_edge_form"]


def _neighbours(model: nn.Module, path: str) -> tuple[nn.Module | None, nn.Module | None]:
    """Return the layers right before and right behind the module at `path`, where that is certain."""
    before: nn.Module | None = None
    after: nn.Module | None = None
    while path:
        parent_path, name = split_path(path)
        parent = model.get_submodule(parent_path)
        if not is_chain(parent):
            # timm's blocks call the projection right after `se` (or the norm, where there is no se).
            if after is None and name in ("se", "bn2", "bn1") and hasattr(parent, "conv_dw"):
                expands = hasattr(parent, "conv_pwl")
                if name == "se" or (name == ("bn2" if expands else "bn1") and not hasattr(parent, "se")):
                    after = getattr(parent, "conv_pwl" if expands else "conv_pw", None)
            break
        left, right = siblings(parent, name)
        # Not `or`: an empty Sequential is false.
        before = left if before is None else before
        after = right if after is None else after
        if before is not None and after is not None:
            break
        path = parent_path
    return (
        None if before is None else last_leaf(before),
        None if after is None else first_leaf(after),
    )


def _scalable(layer: nn.Module | None, *, with_bias: bool) -> list[torch.Tensor]:
    """Return the parameters to multiply so that the layer's output scales, or none if it cannot."""
    # Exact types: a subclass can hold an activation, or normalize its weight.
    if isinstance(layer, nn.BatchNorm2d) and (type(layer) is nn.BatchNorm2d or _is_timm_norm(layer)):
        found: list[torch.Tensor] = [layer.weight, layer.bias]
    elif isinstance(layer, (nn.Conv2d, nn.Linear)) and type(layer) in (nn.Conv2d, nn.Linear):
        found = [layer.weight, layer.bias] if with_bias and layer.bias is not None else [layer.weight]
    else:
        return []
    # A parametrized weight is computed: there is nothing to multiply.
    return found if all(isinstance(parameter, nn.Parameter) for parameter in found) else []


def _is_timm_norm(norm: nn.BatchNorm2d) -> bool:
    """Return whether this is timm's norm with an activation inside, and it has none."""
    named = type(norm).__name__ == "BatchNormAct2d"
    return named and all(type(child) is nn.Identity for child in norm.children())


def absorb_gains(model: nn.Module, *, constants: bool = False) -> list[str]:
    """Move the gains of attention modules into neighbouring linear layers, in place.

    The network computes the same function as before: bit for bit for the gains of an identity start,
    which are powers of two. A gain goes into the convolution behind the attention, or else into the batch
    norm (or convolution) before it, whose scaling the gates' own first layers undo. Where neither
    neighbour is certain, the gain stays in the module.

    Args:
        model: The network, in its float form.
        constants: Also move constant factors of the authors' formulas (the third in Triplet Attention),
            exact up to rounding. Such a module then keeps a ``gain`` in its state dict, because its
            weights are no longer those of the authors' formula.

    Returns:
        The paths of the modules that still have a factor of their own to apply.
    """
    left: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, Attention):
            continue
        target = 1.0 / module.base_factor if constants else 1.0
        if module.gain == target:
            continue
        before, after = _neighbours(model, path)
        behind = _scalable(after, with_bias=False) if not isinstance(after, nn.BatchNorm2d) else []
        ahead = _scalable(before, with_bias=True)
        if behind:
            remainder = module.absorb(1.0, target)
            _multiply(behind, remainder)
        elif ahead and module.absorbs_input_scale:
            scale = module.gain / target
            module.absorb(scale, target)
            _multiply(ahead, scale)
        else:
            left.append(path)
    return left


def _multiply(parameters: list[torch.Tensor], factor: float) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(factor)


def to_edge_form(
    model: nn.Module,
    height: int,
    width: int,
    *,
    form: str | Mapping[str, str] | None = None,
    materialize: bool = False,
    absorb: Literal["gains", "constants", "nothing"] = "gains",
) -> nn.Module:
    """Return the same network for inputs of exactly `height` x `width`, made of what runtimes do fast.

    Every `Mechanism` (those inside EfficientNet too) becomes its edge form for the size it sees, and
    every global average pool becomes a static one. Parameters and buffers are shared with `model`, under
    the same keys: training the result trains `model`.

    Args:
        model: The float network; any module that contains `Attention` modules or none.
        height: Rows of the network's input.
        width: Columns of the network's input.
        form: Edge form for each mechanism by name, or for one module by its path, which goes first; a
            single name applies to every mechanism that has such a form, the others take their default,
            as with None.
        materialize: Share nothing, and turn derived weights into ordinary convolution weights: for
            calibration and export, not for training. The result is in evaluation mode.
        absorb: What to move into neighbouring layers first, see `absorb_gains`: the gains of an identity
            start; also the ``"constants"`` of the authors' formulas, which saves Triplet Attention one
            multiplication of a whole map; or ``"nothing"``. Without `materialize` this changes parameters
            of `model` too, while it still computes the same function.

    Raises:
        RecipeError: If a form or a value of `absorb` is unknown.
        ModelError: If the network cannot run on this size, or an attention sees no single size.
    """
    kinds = {path: module.kind for path, module in model.named_modules() if isinstance(module, Mechanism)}
    forms = _resolve_forms(form, kinds)
    if materialize:
        result = copy.deepcopy(model).eval()
        _absorb(result, absorb)
    else:
        _absorb(model, absorb)
        shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
        result = copy.deepcopy(model, dict(shared))
    for path, (rows, columns) in _seen_sizes(result, height, width).items():
        module = result.get_submodule(path)
        replacement: nn.Module
        if isinstance(module, Mechanism):
            edge = module.edge_form(rows, columns, forms.get(path, forms.get(module.kind)))
            replacement = edge.materialize() if materialize else edge
        else:
            replacement = nn.AvgPool2d((rows, columns))
            replacement.training = module.training
        if not path:
            return replacement
        parent, name = split_path(path)
        setattr(result.get_submodule(parent), name, replacement)
    for path in [path for path, module in result.named_modules() if path and isinstance(module, nn.SiLU)]:
        parent, name = split_path(path)
        setattr(result.get_submodule(parent), name, ExplicitSwish())
    return result


def _absorb(model: nn.Module, what: str) -> None:
    known = ("gains", "constants", "nothing")
    if what not in known:
        raise RecipeError(f"absorb cannot be {what!r}. {close_matches_hint(what, known)}")
    if what != "nothing":
        absorb_gains(model, constants=what == "constants")


def _resolve_forms(form: str | Mapping[str, str] | None, kind_of: Mapping[str, str]) -> dict[str, str]:
    if form is None:
        return {}
    if isinstance(form, Mapping):
        for key, name in form.items():
            known = attentions.get(kind_of.get(key, key)).edge_forms
            if name not in known:
                hint = close_matches_hint(name, known)
                raise RecipeError(f"The attention {key!r} has no edge form {name!r}. {hint}")
        return dict(form)
    kinds = set(kind_of.values())
    chosen = {kind: form for kind in kinds if form in attentions.get(kind).edge_forms}
    if not chosen and kinds:
        known = tuple(name for kind in sorted(kinds) for name in attentions.get(kind).edge_forms)
        hint = close_matches_hint(form, known)
        raise RecipeError(f"No attention in this network has an edge form {form!r}. {hint}")
    return chosen


def _is_global_pool(module: nn.Module) -> bool:
    return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1), [1, 1])


def _seen_sizes(model: nn.Module, height: int, width: int) -> dict[str, tuple[int, int]]:
    """Run on zeros; return the size of the map that each module to be replaced sees."""
    paths: list[str] = []
    for path, module in model.named_modules():
        inside = any(path != outer and path.startswith(f"{outer}." if outer else "") for outer in paths)
        if not inside and (isinstance(module, Mechanism) or _is_global_pool(module)):
            paths.append(path)
    seen: dict[str, set[tuple[int, int]]] = {path: set() for path in paths}

    def note(path: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[path].add((inputs[0].shape[-2], inputs[0].shape[-1]))

        return hook

    hooks = [model.get_submodule(path).register_forward_pre_hook(note(path)) for path in paths]
    try:
        with evaluating(model), torch.no_grad():
            model(zeros_like_parameters(model, (1, _map_channels(model), height, width)))
    except (RuntimeError, ValueError) as exc:
        raise ModelError(
            f"{type(model).__name__} cannot run on an input of {height}x{width}: {exc}. Choose a larger size."
        ) from exc
    finally:
        for handle in hooks:
            handle.remove()
    for path, sizes in seen.items():
        if len(sizes) != 1 and isinstance(model.get_submodule(path), Mechanism):
            got = "is not called" if not sizes else f"is called with several sizes {sorted(sizes)}"
            raise ModelError(f"The attention at {path!r} {got}; an edge form has exactly one size.")
    return {path: next(iter(sizes)) for path, sizes in seen.items() if len(sizes) == 1}


def _map_channels(model: nn.Module) -> int:
    return model.channels if isinstance(model, Mechanism) else input_channels(model)
