"""The attention modules of a network, as regions of its graph, each with its policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from torch import nn

from edgeattn.attention.base import EdgeForm, Mechanism
from edgeattn.errors import RecipeError, close_matches_hint
from edgeattn.quant.config import GatePolicy
from edgeattn.quant.placement import GateRegion

__all__ = ["GateChoice", "check_gate_paths", "gate_paths", "gate_regions"]


def gate_paths(network: nn.Module) -> list[str]:
    """Return the paths of a network's attention modules, in its order; the same in float and edge form."""
    return [path for path, module in network.named_modules() if isinstance(module, (Mechanism, EdgeForm))]


def check_gate_paths(known: Iterable[str], asked: Iterable[str]) -> None:
    """Refuse paths that are no attention modules.

    Args:
        known: Paths of the network's attention modules.
        asked: Paths that a recipe names.

    Raises:
        RecipeError: If one of `asked` is not in `known`; the message names the closest ones.
    """
    known = set(known)
    for path in asked:
        if path not in known:
            hint = close_matches_hint(path, known) if known else "It has none."
            raise RecipeError(f"quant.gate_policies: {path!r} is no attention module of this network. {hint}")


def gate_regions(
    edge: nn.Module, policy: GatePolicy, by_module: Mapping[str, GatePolicy] | None = None
) -> list[GateRegion]:
    """Return a region for every attention module of a network in edge form.

    Args:
        edge: The network.
        policy: Of every module that `by_module` does not name.
        by_module: Policy by the module's path.

    Raises:
        RecipeError: If `by_module` names what is no attention module.
    """
    paths, own = gate_paths(edge), by_module or {}
    check_gate_paths(paths, own)
    return [GateRegion(path.replace(".", "/"), own.get(path, policy)) for path in paths]


@dataclasses.dataclass(frozen=True)
class GateChoice:
    """A policy for every gate of a network.

    Attributes:
        policy: Of every module that `by_module` does not name.
        by_module: Policy by the module's path.
    """

    policy: GatePolicy
    by_module: Mapping[str, GatePolicy] = dataclasses.field(default_factory=dict)

    def of(self, path: str) -> GatePolicy:
        """Return the policy of one attention module."""
        return self.by_module.get(path, self.policy)

    def regions(self, edge: nn.Module) -> list[GateRegion]:
        """Return the regions of a network in edge form; see `gate_regions`."""
        return gate_regions(edge, self.policy, self.by_module)
