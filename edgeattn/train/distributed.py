"""One process, or several that `torchrun` started on one machine.

Gradients are averaged by a plain all-reduce instead of DistributedDataParallel: that would wrap the
module, which renames its state, and fails on parameters that a forward pass does not use.
"""

from __future__ import annotations

import dataclasses
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edgeattn.errors import RecipeError

__all__ = ["World", "average_gradients", "broadcast_state", "join_world", "sum_over_ranks", "wait_for_all"]


@dataclasses.dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1


def join_world() -> World:
    """Return this process's place; under torchrun, connect to the others first (backend gloo).

    The connection stays for the life of the process, so training twice in a run connects once.

    Raises:
        RecipeError: If the environment announces other processes that cannot be reached.
    """
    if not dist.is_available():
        return World()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE") or 1) < 2 or "RANK" not in os.environ:
            return World()
        try:
            dist.init_process_group("gloo")
        except (RuntimeError, ValueError) as exc:
            raise RecipeError(
                f"RANK and WORLD_SIZE announce {os.environ['WORLD_SIZE']} processes, but they cannot be "
                f"joined: {exc}. Start with torchrun, or unset WORLD_SIZE to train in one process."
            ) from exc
    return World(dist.get_rank(), dist.get_world_size())


def average_gradients(model: nn.Module, loss: float, world: World) -> float:
    """Replace every gradient by its mean over the ranks, in one exchange.

    Returns:
        The mean loss, so that all ranks see the same one and give up together if it is not finite.
    """
    if world.size == 1:
        return loss
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters
    ]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), gradients[0].new_tensor([loss])])
    dist.all_reduce(flat)
    flat /= world.size
    pieces = torch.split(flat[:-1], [parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad = piece.view_as(parameter).to(parameter.dtype)
    return float(flat[-1])


def broadcast_state(model: nn.Module, world: World) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if world.size == 1:
        return
    for value in model.state_dict(keep_vars=True).values():
        if isinstance(value, Tensor):
            dist.broadcast(value.detach(), src=0)


def sum_over_ranks(values: list[int], world: World) -> list[int]:
    """Return the element-wise sum of `values` over all ranks."""
    if world.size == 1:
        return values
    total = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(total)
    return [int(value) for value in total]


def wait_for_all(world: World) -> None:
    """Return when every rank has come this far."""
    if world.size > 1:
        dist.barrier()
