"""How a network is trained or fine-tuned: plain values, no framework."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["TrainConfig"]


class TrainConfig(BaseModel):
    """Optimizer, schedule and regularization of one training run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: Annotated[int, Field(ge=0, le=1000)] = 10
    batch_size: Annotated[int, Field(ge=2, le=4096)] = 64
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1, description="Of sgd.")] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    warmup_epochs: Annotated[float, Field(ge=0, description="Linear warm-up before the cosine decay.")] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gradient_clip: Annotated[float | None, Field(gt=0, description="Largest gradient norm.")] = None
    ema_decay: Annotated[
        float | None, Field(gt=0, lt=1, description="Keep an exponential average of the weights.")
    ] = None
    freeze_batch_norm: Annotated[
        bool, Field(description="Normalize with running statistics and leave them alone (for QAT).")
    ] = False
    distillation_weight: Annotated[
        float, Field(ge=0, le=1, description="Share of the loss that follows the float network (QAT).")
    ] = 0.0
    head_lr_multiplier: Annotated[
        float, Field(gt=0, description="Learning rate of the new classifier and gates over the rest's.")
    ] = 1.0
    seed: int = 0
