"""What quantization decides: a range for every quantized tensor, scales for every weight.

A `QuantPlan` is made once, by PTQ or QAT, and is independent of any runtime. A profile spells it:

* ``u8``: non-negative tensors unsigned with zero point 0, others unsigned affine. For x86, ARM and
  WebAssembly kernels.
* ``s8``: signed, symmetric, zero point 0. For TensorRT. Where a tensor's zero point can move into the
  biases around it (`edgeattn.quant.folding`), it uses the affine grid of ``u8``, less 128.

Weights are int8, symmetric, per output channel, in [-127, 127], in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeattn.artifact import read_json, write_json
from edgeattn.errors import ArtifactError

__all__ = [
    "PROFILES",
    "ActivationRange",
    "LadderStep",
    "Profile",
    "QuantParams",
    "QuantPlan",
    "follow_ranges",
    "quantize_weight",
]

Profile = Literal["s8", "u8"]
PROFILES: tuple[Profile, ...] = ("s8", "u8")
WEIGHT_LIMIT = 127
_SMALLEST_SCALE = 1e-12
_LARGEST_BOUND = 1e30  # of what a file may ask for: products of scales stay finite in float32


_Positive = Annotated[float, Field(gt=0)]


@dataclasses.dataclass(frozen=True)
class QuantParams:
    """Scale and zero point of a per-tensor 8-bit quantization.

    Attributes:
        scale: Real value of one step.
        zero_point: Integer that stands for 0.0.
        quant_min: Smallest integer.
        quant_max: Largest integer.
    """

    scale: float
    zero_point: int
    quant_min: int
    quant_max: int

    @property
    def dtype(self) -> type[np.generic]:
        """NumPy type of the integers."""
        return np.uint8 if self.quant_min == 0 else np.int8

    @property
    def low(self) -> float:
        """Smallest real value that can be represented."""
        return (self.quant_min - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """Largest real value that can be represented."""
        return (self.quant_max - self.zero_point) * self.scale


class ActivationRange(BaseModel):
    """The range of one activation tensor.

    `low` and `high` bound the values in profile ``u8``; `limit` is the symmetric bound in profile
    ``s8``. They differ because the best clipping point depends on the number of levels left.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: Annotated[float, Field(ge=-_LARGEST_BOUND)]
    high: Annotated[float, Field(le=_LARGEST_BOUND)]
    limit: Annotated[float, Field(gt=0, le=_LARGEST_BOUND)]
    addend: bool = False
    """The convolution's branch of a residual add: profile s8 leaves it unquantized, because TensorRT
    fuses the add into that convolution."""
    folds_zero_point: bool = False
    """Profile s8 quantizes this tensor with the affine grid, whose zero point goes into biases."""

    @model_validator(mode="after")
    def _holds_zero(self) -> ActivationRange:
        if not (self.low <= 0.0 <= self.high and self.low < self.high):
            raise ValueError(f"a range must hold zero and not be empty, got [{self.low}, {self.high}]")
        return self

    def params(self, profile: Profile) -> QuantParams:
        """Return scale and zero point as `profile` computes, the scale rounded to float32.

        Profile s8 spells every zero point as 0: one that is not 0 here is to be folded into biases.
        """
        if profile == "s8":
            if not self.folds_zero_point:
                return QuantParams(_scale(self.limit / 127), 0, -128, 127)
            affine = self.params("u8")
            return QuantParams(affine.scale, affine.zero_point - 128, -128, 127)
        if self.low == 0.0:
            return QuantParams(_scale(self.high / 255), 0, 0, 255)
        scale = _scale((self.high - self.low) / 255)
        return QuantParams(scale, int(np.clip(round(-self.low / scale), 0, 255)), 0, 255)

    def is_quantized(self, profile: Profile) -> bool:
        """Return whether `profile` puts Q/DQ on this tensor."""
        return not (self.addend and profile == "s8")

    def times(self, factor: float) -> ActivationRange:
        """Return the range of the values times `factor`, above 0: the integers stay."""
        return self.model_copy(
            update={"low": self.low * factor, "high": self.high * factor, "limit": self.limit * factor}
        )


def follow_ranges(
    activations: Mapping[str, ActivationRange], same_range: Mapping[str, str]
) -> dict[str, ActivationRange]:
    """Return the ranges, those of tensors in `same_range` taken anew from the tensor that they follow."""
    followed = {
        name: activations[source].model_copy(update={"addend": activations[name].addend})
        for name, source in same_range.items()
        if name in activations and source in activations
    }
    return {**activations, **followed}


def _scale(value: float) -> float:
    return float(np.float32(max(value, _SMALLEST_SCALE)))


class LadderStep(BaseModel):
    """What one step of post-training quantization reached, on calibration images.

    Attributes:
        step: Name of the step.
        agreement_u8: Share of images with the float graph's largest logit, profile u8; None where outputs are no
            scores of classes.
        sqnr_db_u8: Ratio of the float logits' power to the error's, in dB, profile u8.
        agreement_s8: As `agreement_u8`, profile s8.
        sqnr_db_s8: As `sqnr_db_u8`, profile s8.
        seconds: Time that the step took, its measurement left out.
        kept: Whether the plan keeps what the step did.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    step: str
    agreement_u8: float | None
    sqnr_db_u8: float
    agreement_s8: float | None
    sqnr_db_s8: float
    seconds: float
    kept: bool


class QuantPlan(BaseModel):
    """Ranges and scales by tensor name of one canonical fp32 ONNX graph.

    Attributes:
        method: ``"ptq"`` or ``"qat"``.
        activations: Range of every quantized activation.
        weights: Scale of every output channel, of every quantized weight.
        channel_scales: By group of tensors (`edgeattn.quant.equalize`), what each channel is divided by.
        channel_orders: By class of tensors (`edgeattn.quant.channel_classes`), in which order exported graphs hold
            their channels. All else in a plan is in the float graph's order.
        bias_shift: By profile and bias tensor, what is added to the float bias to cancel the mean
            error that quantization causes.
        roundings: By weight, which of its values round to their second nearest integer
            (`edgeattn.quant.rounding`). They hold for these `weights` and `channel_scales` only: what changes
            one drops the others.
        float_regions: Name prefixes of module paths whose operations stay float.
        ladder: Steps of post-training quantization, in order.
        extents: Largest magnitude of every float activation on calibration images: says which tensors a
            target may keep in float16.
        provenance: Free-form strings: calibration fingerprint, estimator, tool versions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    method: Literal["ptq", "qat"]
    activations: dict[str, ActivationRange]
    weights: dict[str, list[_Positive]]
    channel_scales: dict[str, list[_Positive]] = {}
    channel_orders: dict[str, list[Annotated[int, Field(ge=0)]]] = {}
    bias_shift: dict[Profile, dict[str, list[float]]] = {}
    roundings: dict[str, str] = {}
    float_regions: list[str] = []
    ladder: list[LadderStep] = []
    extents: dict[str, Annotated[float, Field(ge=0, le=_LARGEST_BOUND)]] = {}
    provenance: dict[str, str] = {}

    def save(self, path: Path) -> Path:
        """Write the plan as JSON."""
        return write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> QuantPlan:
        """Read a plan.

        Raises:
            ArtifactError: If the file is not a valid plan.
        """
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as exc:
            first = exc.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ArtifactError(
                f"{path} is not a valid plan: {where}: {first['msg']}. Run again to make it anew."
            ) from exc


def quantize_weight(weight: NDArray[Any], scales: NDArray[Any], axis: int = 0) -> NDArray[np.int8]:
    """Return int8 weights in [-127, 127], rounded half to even, one scale per slice of `axis`."""
    shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
    steps = weight.astype(np.float64) / np.asarray(scales, np.float64).reshape(shape)
    return np.clip(np.rint(steps), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)
