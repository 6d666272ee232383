"""How a network is quantized: plain values, no framework."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from edgeattn.train.config import TrainConfig

__all__ = [
    "AUTO_ESTIMATORS",
    "RANGES_ONLY",
    "GatePolicy",
    "Headroom",
    "PtqConfig",
    "QuantConfig",
    "RangeChoice",
    "RangeEstimator",
]

GatePolicy = Literal["int8", "fixed", "float"]
"""What happens inside a gate: everything INT8; INT8 with the sigmoid's output on the fixed range
[0, 1]; or float throughout."""

Headroom = Literal["measured", "proven", "none"]
"""Whether sums of two products fit 16 bits: on calibration images, on all, or not cared for."""

RangeEstimator = Literal["minmax", "mean_minmax", "percentile", "mse"]
RangeChoice = Literal["auto", "minmax", "mean_minmax", "percentile", "mse"]
AUTO_ESTIMATORS: tuple[RangeEstimator, ...] = ("mean_minmax", "minmax", "mse")
"""What `auto` chooses from, in the order of trying."""


class PtqConfig(BaseModel):
    """Post-training quantization: steps from the cheapest on, each kept where it helps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nncf: Annotated[bool, Field(description="Begin with what NNCF's post-training quantization decides.")] = (
        True
    )
    bias_correction: Annotated[bool, Field(description="Let NNCF correct biases.")] = True
    range_estimator: Annotated[
        RangeChoice,
        Field(
            description="How the range of an activation follows from calibration images. mean_minmax: the "
            "mean over images of each image's extremes. auto: of mean_minmax, minmax and mse the one with which the "
            "network's logits come nearest to the float network's."
        ),
    ] = "auto"
    percentile: Annotated[float, Field(gt=50, le=100, description="For range_estimator percentile.")] = 99.99
    pixels: Annotated[
        bool,
        Field(
            description="Quantize images to the pixels that they came from, without any error, where their values lie on "
            "a grid of 256 steps for each channel. The steps go into the weights of the first convolution."
        ),
    ] = True
    equalization: Annotated[
        bool, Field(description="Bring the channels before depthwise convolutions to like ranges.")
    ] = True
    importance: Annotated[
        bool,
        Field(description="Search ranges again, errors weighted by what the network's answer depends on."),
    ] = True
    swish_grids: Annotated[
        bool,
        Field(
            description="Quantize what hard swishes read from -3 on, in steps of which 3 is a whole number. ONNX Runtime then "
            "computes them in integers, in a third of the time."
        ),
    ] = True
    padded_grids: Annotated[
        bool,
        Field(
            description="In profile s8, give all 256 levels also to tensors that a convolution with padding reads, where "
            "half of them cost the network's answers much. A pad of integers stands in front of it."
        ),
    ] = True
    headroom: Annotated[
        Headroom,
        Field(
            description="Room in the 16-bit sums of x86 kernels without VNNI, by weight scales that are larger where "
            "needed. measured: where calibration images saturate, weighed against coarser rounding. proven: no image "
            "can saturate. none: every CPU that runs the result has VNNI, or is no x86."
        ),
    ] = "measured"
    channel_order: Annotated[
        bool,
        Field(
            description="Put inner channels in an order in which large weights are no neighbours, so that room in 16-bit "
            "sums costs weights next to nothing. Changes no number otherwise."
        ),
    ] = True
    exact: Annotated[
        bool,
        Field(
            description="Choose scales, zero points and biases with which CPU runtimes have nothing to round on the way "
            "to an integer: ONNX Runtime, OpenVINO and the reference then give the same integers on x86, in "
            "networks of convolutions, ReLU6, residual sums and pools; gates keep their grids. Costs a fraction of a bit "
            "of some ranges; includes headroom that is proven."
        ),
    ] = False
    tuning_steps: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="Batches of calibration images from which biases and ranges are tuned towards the "
            "float network's logits, for each profile; 0 leaves them.",
        ),
    ] = 120
    rounding: Annotated[
        bool,
        Field(
            description="Let each weight round up or down, whichever way its layer errs less on calibration images, and "
            "let biases take the mean of what is left. Without it, every weight rounds to the nearest integer."
        ),
    ] = True
    stop_at_sqnr_db: Annotated[
        float | None, Field(description="Skip the steps left once both profiles reach this.")
    ] = None
    stop_at_agreement: Annotated[
        float | None, Field(ge=0, le=1, description="Skip the steps left once both profiles reach this.")
    ] = None

    @property
    def estimators(self) -> tuple[RangeEstimator, ...]:
        """The range estimators to try, in order."""
        return AUTO_ESTIMATORS if self.range_estimator == "auto" else (self.range_estimator,)

    @model_validator(mode="after")
    def _exact_has_headroom(self) -> PtqConfig:
        if self.exact and self.headroom == "none":
            raise ValueError(
                "exact needs weights that cannot saturate, and headroom is none: leave headroom out, or exact"
            )
        return self


RANGES_ONLY = PtqConfig(
    nncf=False,
    range_estimator="minmax",
    equalization=False,
    importance=False,
    padded_grids=False,
    headroom="none",
    tuning_steps=0,
    rounding=False,
)
"""Calibration for graphs that are only timed or built: which kernels run does not depend on how good ranges are."""


class QuantConfig(BaseModel):
    """From a float network to a `QuantPlan`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Annotated[Literal["ptq", "qat"], Field(description="qat trains on from what ptq found.")] = "ptq"
    gate_policy: Annotated[
        GatePolicy, Field(description="What happens inside the gates that gate_policies does not name.")
    ] = "int8"
    gate_policies: Annotated[
        dict[str, GatePolicy],
        Field(
            description="Policy of single attention modules, by the exact path that report.json names under "
            "quant.edge_forms, such as features.3.conv.attention. tune leaves these as they are."
        ),
    ] = Field(default_factory=dict)
    ptq: PtqConfig = PtqConfig()
    qat: TrainConfig = TrainConfig(
        epochs=2, learning_rate=1e-4, warmup_epochs=0.0, freeze_batch_norm=True, distillation_weight=0.5
    )

    @field_validator("qat")
    @classmethod
    def _fixed_size(cls, value: TrainConfig) -> TrainConfig:
        if value.start_size is not None:
            raise ValueError("qat trains the edge form, whose size is fixed: start_size is for train only")
        return value
