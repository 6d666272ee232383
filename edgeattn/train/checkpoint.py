"""The state of a training run on disk: written whole or not at all, and loaded without running code."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeattn.artifact import write_bytes

__all__ = ["CHECKPOINT_NAME", "Checkpoint", "hash_state", "load_checkpoint", "save_checkpoint"]

CHECKPOINT_NAME = "checkpoint.pt"
_FORMAT = 1

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Everything that the next step depends on.

    The learning rate and all randomness are functions of the seed, the epoch and the batch, so
    neither a scheduler nor a random state is part of it.

    Attributes:
        fingerprint: Of the run: configuration, data, starting weights.
        epoch: Epoch in progress, from 0.
        batch: Next batch of that epoch.
        loss_sum: Over the batches of that epoch so far.
        seconds: Spent so far, over all interrupted runs.
        history: One mapping of numbers for each finished epoch.
        model: State of the module.
        optimizer: State of the optimizer.
        average: Averaged weights, if they are kept.
    """

    fingerprint: str
    epoch: int
    batch: int
    loss_sum: float
    seconds: float
    history: list[dict[str, float]]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Tensor] | None


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint; a kill at any moment leaves the old one or the new one.

    Raises:
        ArtifactError: If the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    # Not straight to the file: torch reports a full disk as a RuntimeError without a reason.
    torch.save({"format": _FORMAT, **vars(checkpoint)}, buffer)
    write_bytes(folder / CHECKPOINT_NAME, buffer.getvalue())


def load_checkpoint(folder: Path, fingerprint: str, device: torch.device) -> Checkpoint | None:
    """Load the checkpoint of this very run, or return None to start from the beginning.

    One of another run, or one that cannot be read, is not used; a warning says why.
    """
    path = folder / CHECKPOINT_NAME
    if not path.is_file():
        return None
    try:
        value = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(value, dict) or value.pop("format", None) != _FORMAT:
            raise ValueError("it has another format")  # noqa: TRY301 - joins the other reasons below
        checkpoint = Checkpoint(**value)
    except Exception as exc:  # a damaged archive raises nearly anything
        logger.warning("Ignoring %s and training from the start: it cannot be read (%s).", path, exc)
        return None
    if checkpoint.fingerprint != fingerprint:
        logger.warning(
            "Ignoring %s and training from the start: it belongs to a run with another configuration, "
            "other data or other starting weights.",
            path,
        )
        return None
    return checkpoint


def hash_state(module: nn.Module) -> str:
    """Return the SHA-256 of a module's state: names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous()
            digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}\n".encode())
    return digest.hexdigest()
