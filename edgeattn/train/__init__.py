"""Training and fine-tuning of float and fake-quantized networks.

Names are imported when they are first used: `edgeattn.train.config` must load without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeattn.train.arrays import Progress, TrainArrays
    from edgeattn.train.config import TrainConfig
    from edgeattn.train.evaluation import EvalResult, evaluate
    from edgeattn.train.loop import fit
    from edgeattn.train.result import EpochRecord, TrainingDivergedError, TrainResult

__all__ = [
    "EpochRecord",
    "EvalResult",
    "Progress",
    "TrainArrays",
    "TrainConfig",
    "TrainResult",
    "TrainingDivergedError",
    "evaluate",
    "fit",
]

_MODULE_OF_NAME = {
    "EpochRecord": "edgeattn.train.result",
    "EvalResult": "edgeattn.train.evaluation",
    "Progress": "edgeattn.train.arrays",
    "TrainArrays": "edgeattn.train.arrays",
    "TrainConfig": "edgeattn.train.config",
    "TrainResult": "edgeattn.train.result",
    "TrainingDivergedError": "edgeattn.train.result",
    "evaluate": "edgeattn.train.evaluation",
    "fit": "edgeattn.train.loop",
}


def __getattr__(name: str) -> object:
    try:
        module = _MODULE_OF_NAME[name]
    except KeyError:
        raise AttributeError(f"module 'edgeattn.train' has no attribute {name!r}") from None
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
