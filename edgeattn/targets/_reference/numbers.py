"""Numbers of the integer reference: whole steps times a scale, rounded only where the graph quantizes."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import RecipeError

__all__ = [
    "NEAR_TIE",
    "Arithmetic",
    "Real",
    "as_float32",
    "quantize",
    "round_bfloat16",
    "round_steps",
]

Array = NDArray[Any]
NEAR_TIE = 1e-3
"""Of a step: more than float32 errs by in requantizing an accumulator, and far less than any mistake."""

_CHOICES = {
    "rounding": ("half-even", "half-away", "tie-up", "tie-down"),
    "bias": ("int32", "float"),
    "accumulate": ("exact", "vpmaddubsw", "vpmaddubsw-onednn"),
    "float_dtype": ("float32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """How the reference computes what the graph leaves open.

    Attributes:
        rounding: Of values that lie right between two steps: ``"half-even"``, as ONNX says and x86 does,
            or ``"half-away"`` from zero, as ARM's kernels do. To tell what may round either way in
            float32: ``"tie-up"`` and ``"tie-down"`` send what lies within a thousandth of a step of a tie up
            and down.
        bias: ``"int32"``: rounded to a step of the accumulator, as ONNX Runtime, TensorRT and ARM add it;
            ``"float"``: added behind the accumulator unrounded, as OpenVINO does.
        accumulate: ``"exact"``, or ``"vpmaddubsw"``: as on x86 without VNNI, where products of
            neighbouring channels are added in pairs that saturate at 16 bits. ONNX Runtime and oneDNN (in
            OpenVINO: ``"vpmaddubsw-onednn"``) pair an odd number of channels differently.
        float_dtype: What computes the float part.

    Raises:
        RecipeError: If a value is none of those.
    """

    rounding: Literal["half-even", "half-away", "tie-up", "tie-down"] = "half-even"
    bias: Literal["int32", "float"] = "int32"
    accumulate: Literal["exact", "vpmaddubsw", "vpmaddubsw-onednn"] = "exact"
    float_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Check the values."""
        for field, allowed in _CHOICES.items():
            value = getattr(self, field)
            if value not in allowed:
                raise RecipeError(
                    f"reference: {field} is {value!r}; expected one of {', '.join(map(repr, allowed))}."
                )


@dataclasses.dataclass(frozen=True)
class Real:
    """A tensor that stands for ``steps * scale``, unrounded.

    Attributes:
        steps: Whole numbers in float32 or float64, or in float64 what arithmetic made of them.
        scale: float64: a scalar, or an array that broadcasts against `steps`.
        limit: Bound of ``|steps|`` where they are whole numbers and the bound is known; else None.
        zero_point: Of the integers that `steps` came from, and ...
        signed: ... whether those were signed.
    """

    steps: Array
    scale: Array
    limit: int | None = None
    zero_point: int = 0
    signed: bool = False

    def wide(self) -> NDArray[np.float64]:
        """Return the values in float64."""
        value: NDArray[np.float64] = np.multiply(self.steps, self.scale, dtype=np.float64)
        return value

    def plain(self) -> NDArray[np.float32]:
        """Return the values in float32, as DequantizeLinear computes them from integers."""
        if self.limit is not None and self.scale.ndim == 0:
            value: NDArray[np.float32] = np.multiply(self.steps, np.float32(self.scale), dtype=np.float32)
            return value
        return self.wide().astype(np.float32)

    def moved(self, steps: Array) -> Real:
        """Return the same numbers at other places."""
        return dataclasses.replace(self, steps=steps)


def as_float32(value: Array | Real) -> Array:
    """Return what a float operation reads: float32, or integers (shapes, indices) as they are."""
    if isinstance(value, Real):
        return value.plain()
    return value.astype(np.float32) if value.dtype == np.float64 else value


def round_steps(values: NDArray[np.floating[Any]], rounding: str) -> NDArray[np.floating[Any]]:
    """Round to whole numbers; ties as `rounding` says."""
    result: NDArray[np.floating[Any]]
    if rounding == "half-even":
        result = np.rint(values)
    elif rounding == "half-away":
        result = np.copysign(np.floor(np.abs(values) + 0.5), values)
    elif rounding == "tie-up":
        result = np.floor(values + (0.5 + NEAR_TIE))
    else:
        result = np.ceil(values - (0.5 + NEAR_TIE))
    return result


def quantize(value: Array | Real, scale: Array, zero_point: Array, axis: int, rounding: str) -> Array:
    """Return the integers of QuantizeLinear.

    A `Real` is rounded once, from float64. Other values are divided in float32, as ONNX has it.

    Args:
        value: What is quantized.
        scale: float32 scalar, or one value for each slice of `axis`.
        zero_point: Integers of the wanted type, shaped as `scale`.
        axis: As the node says.
        rounding: As in `Arithmetic`.
    """
    zeros = zero_point.astype(np.float64)
    if scale.ndim:
        rank = (value.steps if isinstance(value, Real) else value).ndim
        shape = [-1 if dim == axis % rank else 1 for dim in range(rank)]
        scale, zeros = scale.reshape(shape), zeros.reshape(shape)
    steps: Array
    if isinstance(value, Real):
        # The ratio first: where both scales are equal it is exactly 1, and ties stay ties.
        steps = np.multiply(value.steps, value.scale / scale.astype(np.float64), dtype=np.float64)
    else:
        steps = as_float32(value) / scale
    limits = np.iinfo(zero_point.dtype)
    steps = round_steps(steps, rounding)
    steps += zeros.astype(steps.dtype)
    np.clip(steps, limits.min, limits.max, out=steps)
    # What is not a number becomes 0, deliberately and everywhere, not by the processor's choice.
    if not np.isfinite(steps.sum()):
        steps = np.nan_to_num(steps, nan=0.0)
    integers: Array = steps.astype(zero_point.dtype)
    return integers


def round_bfloat16(values: Array) -> Array:
    """Round float32 to the nearest bfloat16, ties to even, and widen again."""
    if values.dtype != np.float32:
        return values
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) & np.uint32(0xFFFF0000)
    widened: Array = rounded.view(np.float32)
    return widened
