"""How a network is trained or fine-tuned: plain values, no framework."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
    start_size: Annotated[
        int | None,
        Field(
            ge=16,
            le=1024,
            description="Side in pixels of the images of the first start_epochs, in training and validation: small "
            "images are several times as fast, and a network learns most of its features from them.",
        ),
    ] = None
    start_epochs: Annotated[int, Field(ge=0, le=1000, description="Epochs at start_size.")] = 0
    seed: int = 0

    @model_validator(mode="after")
    def _start_is_whole(self) -> TrainConfig:
        if (self.start_size is None) != (self.start_epochs == 0):
            raise ValueError(
                f"start_size ({self.start_size}) and start_epochs ({self.start_epochs}) belong together: "
                "set both or neither"
            )
        if self.start_epochs >= self.epochs and self.start_size is not None:
            raise ValueError(
                f"start_epochs ({self.start_epochs}) must leave some of the {self.epochs} epochs for the "
                "network's own size"
            )
        return self
