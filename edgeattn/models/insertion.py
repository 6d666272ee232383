"""Put attention into a network: ours, torchvision's, timm's, or anyone's by module path.

Blocks are recognized by their structure, so neither library is imported:

======================================  ==============================  =========================
block                                   hidden: after                   output: after
======================================  ==============================  =========================
``conv`` Sequential that ends with      what stands before the          the last child of ``conv``
Conv2d and BatchNorm2d (torchvision's   projection
and this package's MobileNetV2)
``block`` Sequential that ends with a   what stands before the last     the last child of
Sequential (torchvision's and this      child, that is behind           ``block``
package's EfficientNet; MobileNetV3)    Squeeze-and-Excitation
``conv_dw`` and ``conv_pwl`` or         ``se`` where there is one,      ``bn3``, or ``bn2`` where
``conv_pw`` attributes (timm)           ``bn2`` or ``bn1`` otherwise    there is no expansion
======================================  ==============================  =========================
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgeattn.attention import attentions, create_attention
from edgeattn.attention.base import Attention
from edgeattn.errors import ModelError, RecipeError, close_matches_hint
from edgeattn.models.tree import evaluating, input_channels, insert_after, zeros_like_parameters

__all__ = ["Block", "find_blocks", "insert_attention"]

_PLACES = ("authors", "hidden", "output")


@dataclasses.dataclass(frozen=True)
class Block:
    """An inverted residual block and the two places in it.

    Attributes:
        path: Of the block.
        hidden: Path of the module after which the hidden place is.
        hidden_channels: Channels there.
        output: Path of the module after which the output place is.
        output_channels: Channels there.
        expands: Whether a 1x1 convolution widens the map first.
    """

    path: str
    hidden: str
    hidden_channels: int
    output: str
    output_channels: int
    expands: bool


def _join(path: str, *names: str) -> str:
    return ".".join(part for part in (path, *names) if part)


def _convs(modules: Sequence[nn.Module]) -> list[nn.Conv2d]:
    # Convolutions inside an attention (SE) belong to its gate, not to the block; theirs see 1x1 maps.
    found: list[nn.Conv2d] = []
    for module in modules:
        if isinstance(module, nn.Conv2d):
            found.append(module)
        elif isinstance(module, nn.Sequential):
            found.extend(_convs(list(module.children())))
    return found


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups > 1 and conv.groups == conv.in_channels


def _chain_block(path: str, field: str, chain: nn.Sequential) -> Block | None:
    """Recognize a Sequential whose last convolution is the projection."""
    children = list(chain.named_children())
    at = max((i for i, (_, child) in enumerate(children) if _convs([child])), default=0)
    before = _convs([child for _, child in children[:at]])
    if at == 0 or not any(_is_depthwise(conv) for conv in before):
        return None
    projection = _convs([children[at][1]])[-1]
    return Block(
        path=path,
        hidden=_join(path, field, children[at - 1][0]),
        hidden_channels=projection.in_channels,
        output=_join(path, field, children[-1][0]),
        output_channels=projection.out_channels,
        expands=len(before) > 1,
    )


def _attribute_block(path: str, module: nn.Module) -> Block | None:
    """Recognize timm's blocks, which call named attributes."""
    expands = hasattr(module, "conv_pwl")
    projection = getattr(module, "conv_pwl" if expands else "conv_pw", None)
    if not isinstance(projection, nn.Conv2d):
        return None
    norm_behind_depthwise = "bn2" if expands else "bn1"
    hidden = "se" if isinstance(getattr(module, "se", None), nn.Module) else norm_behind_depthwise
    output = "bn3" if expands else "bn2"
    if not all(isinstance(getattr(module, name, None), nn.Module) for name in (hidden, output)):
        return None
    return Block(
        path=path,
        hidden=_join(path, hidden),
        hidden_channels=projection.in_channels,
        output=_join(path, output),
        output_channels=projection.out_channels,
        expands=expands,
    )


def find_blocks(model: nn.Module) -> list[Block]:
    """Return the inverted residual blocks of a network, in its own order."""
    found: list[Block] = []
    for path, module in model.named_modules():
        block: Block | None = None
        if isinstance(getattr(module, "conv_dw", None), nn.Module):
            block = _attribute_block(path, module)
        else:
            for field in ("conv", "block"):
                chain = getattr(module, field, None)
                if isinstance(chain, nn.Sequential):
                    block = _chain_block(path, field, chain)
                    break
        if block is not None:
            found.append(block)
    return found


def insert_attention(
    model: nn.Module,
    kind: str,
    *,
    where: str | Sequence[str] = "authors",
    identity: bool = True,
    input_shape: tuple[int, int, int] | None = None,
    **options: Any,
) -> nn.Module:
    """Return a copy of `model` with attention in it; the model given stays as it is.

    Args:
        model: Any network; blocks are recognized as described in this module.
        kind: A name in `edgeattn.attention.attentions`.
        where: ``"authors"``: where the mechanism's authors put it. ``"hidden"``: after each depthwise
            convolution's activation, in blocks that expand. ``"output"``: at the end of every block,
            before the residual add. Otherwise module paths after which to insert, in which each part
            may be a pattern, such as ``"features.*.conv"``.
        identity: Start as the identity, so that the outputs do not move; see `edgeattn.attention.base`.
        input_shape: (C, H, W) of an input, used with module paths to find the number of channels there;
            None means 64 x 64 pixels.
        **options: The mechanism's own options.

    Raises:
        RecipeError: If the kind, a place or an option's value is not valid.
        TypeError: If an option is unknown.
        ModelError: If there is no place of the kind asked for.
    """
    info = attentions.get(kind)
    if info.contract != "map":
        insertable = [name for name in attentions if attentions.get(name).contract == "map"]
        raise RecipeError(
            f"The attention {kind!r} cannot be inserted: it is of the contract {info.contract!r}, and only those "
            f"that go from a map to one of its shape can. Choose one of {', '.join(insertable)}."
        )
    result = copy.deepcopy(model)
    if isinstance(where, str) and where in _PLACES:
        place = info.placement if where == "authors" else where
        sites = _block_sites(result, place)
    else:
        paths = _resolve_paths(result, [where] if isinstance(where, str) else list(where))
        sites = _probe_channels(result, paths, input_shape)
    reference = next(result.parameters(), None)
    for path, channels in sites:
        attention = create_attention(kind, channels, **options)
        if identity:
            attention.start_as_identity()
        if reference is not None:
            attention.to(device=reference.device, dtype=reference.dtype)
        attention.train(result.training)
        insert_after(result, path, attention)
    return result


def _block_sites(model: nn.Module, place: str) -> list[tuple[str, int]]:
    blocks = find_blocks(model)
    if place == "hidden":
        sites = [(block.hidden, block.hidden_channels) for block in blocks if block.expands]
    else:
        sites = [(block.output, block.output_channels) for block in blocks]
    if not sites:
        raise ModelError(
            f"No inverted residual block was recognized in {type(model).__name__}, so there is no "
            f"{place!r} place. Pass the module paths after which to insert as where=[...]."
        )
    return sites


def _matches(pattern: str, path: str) -> bool:
    parts, pattern_parts = path.split("."), pattern.split(".")
    return len(parts) == len(pattern_parts) and all(
        fnmatch.fnmatchcase(part, wanted) for part, wanted in zip(parts, pattern_parts, strict=True)
    )


def _resolve_paths(model: nn.Module, patterns: list[str]) -> list[str]:
    inside = [path for path, module in model.named_modules() if isinstance(module, Attention)]
    known = [path for path, _ in model.named_modules() if path]
    chosen: dict[str, None] = {}
    if not patterns:
        raise RecipeError("where is an empty list; name at least one module path.")
    for pattern in patterns:
        matches = [path for path in known if _matches(pattern, path)]
        if not matches:
            # An abbreviation of a place's name is the likelier mistake in a word without dots.
            candidates = known if "." in pattern else [*known, *_PLACES]
            hint = close_matches_hint(pattern, candidates) if len(candidates) else ""
            if hint.startswith("Known:"):
                hint = f"Places: {', '.join(_PLACES)}; or module paths such as {known[-1]!r}."
            raise RecipeError(f"There is no module {pattern!r} in {type(model).__name__}. {hint}")
        for path in matches:
            if any(path.startswith(f"{owner}.") for owner in inside):
                raise RecipeError(f"{path!r} lies inside an attention module; choose a path outside it.")
            chosen[path] = None
    return list(chosen)


def _probe_channels(
    model: nn.Module, paths: list[str], input_shape: tuple[int, int, int] | None
) -> list[tuple[str, int]]:
    """Run the network on zeros to see what comes out of the modules at `paths`."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                shapes[path] = tuple(output.shape)

        return hook

    shape = input_shape or (input_channels(model), 64, 64)
    hooks = [model.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    try:
        with evaluating(model), torch.no_grad():
            model(zeros_like_parameters(model, (1, *shape)))
    except (RuntimeError, ValueError, TypeError, IndexError) as exc:
        raise ModelError(
            f"{type(model).__name__} cannot run on zeros of shape {(1, *shape)} ({exc}). "
            "Pass its (C, H, W) as input_shape."
        ) from exc
    finally:
        for handle in hooks:
            handle.remove()
    for path in paths:
        if len(shapes.get(path, ())) != 4:
            got = f"gives {shapes[path]}" if path in shapes else "gives no tensor, or is not called"
            raise RecipeError(f"The module {path!r} {got}; attention needs a map (N, C, H, W).")
    return [(path, shapes[path][1]) for path in paths]
