"""What a training run tells its caller."""

from __future__ import annotations

import dataclasses

from edgeattn.errors import EdgeAttnError

__all__ = ["EpochRecord", "TrainResult", "TrainingDivergedError"]


class TrainingDivergedError(EdgeAttnError):
    """The loss is no longer a number."""


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One epoch: its number from 0, mean training loss, validation top-1, and last learning rate."""

    epoch: int
    loss: float
    top1: float
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a training run went.

    Attributes:
        best_top1: Largest validation top-1 of any epoch, at that epoch's image size, in [0, 1]; for the record only.
        last_top1: Of the weights that the module now holds.
        history: One record for each epoch.
        epochs_run: Epochs trained by this call; fewer than configured if it resumed.
        seconds: Time spent training, over all interrupted calls.
    """

    best_top1: float
    last_top1: float
    history: tuple[EpochRecord, ...]
    epochs_run: int
    seconds: float
