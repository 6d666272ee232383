"""One layer against the integer reference, both given the same integers: how far apart, and why.

End to end nothing can be said about a single layer: one value that lies between two steps and rounds the
other way decorrelates every later rounding within a few layers. Given the same inputs, a right layer differs
from exact arithmetic by one step at the few values that lie on the border, and by nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import DataError

__all__ = ["CAUSES", "Finding", "LayerDifference", "LayerTally", "diagnose"]

Steps = NDArray[np.float64]

CAUSES = {
    "equal": "no difference",
    "rounding": "at most one step, without bias",
    "pair-saturation": "sums of two products saturate at 16 bits (x86 without VNNI)",
    "saturation": "values are cut at a bound that the graph does not have",
    "wrong-scale": "the scale is another",
    "wrong-zero-point": "the zero point is another",
    "read-as-signed": "unsigned integers are read as signed ones",
    "missing-clip": "a clip or ReLU of the graph is not applied",
    "lost-qdq": "a rounding of the graph is left out",
    "bfloat16": "the float part is computed in bfloat16",
    "per-tensor-weight": "the weight has one scale for all channels",
    "channel-order": "the input's channels are in another order",
    "unexplained": "an error of another kind",
}
"""What a difference can come from. All but the first two are errors."""

HISTOGRAM_BINS = 5
_ON_GRID = 0.02
_BIAS = 0.1
_FEW = 0.01
_EXPLAINED = 0.9
_OVER_ONE = 1e-3
_ON_BORDER = 0.99


@dataclasses.dataclass(frozen=True)
class Finding:
    """Why a layer differs from the reference.

    Attributes:
        cause: One of `CAUSES`.
        evidence: Figures that show it.
    """

    cause: str
    evidence: str

    @property
    def is_error(self) -> bool:
        """Whether it is more than rounding."""
        return self.cause not in ("equal", "rounding")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return {**dataclasses.asdict(self), "is_error": self.is_error}


@dataclasses.dataclass(frozen=True)
class LayerDifference:
    """A layer's distance from the reference, in steps of its output, over all images compared.

    Attributes:
        name: The quantized tensor that the layer writes.
        module: Path of the module, or None.
        n: Values compared.
        histogram: Shares of values 0, 1, 2, 3, and 4 or more steps apart.
        max_lsb: The largest distance.
        bias_lsb: Mean of runtime minus reference.
        sqnr_db: Of the runtime's integers against the reference's, less the zero point.
        finding: Why.
    """

    name: str
    module: str | None
    n: int
    histogram: tuple[float, ...]
    max_lsb: float
    bias_lsb: float
    sqnr_db: float
    finding: Finding

    @property
    def over_one_share(self) -> float:
        """Share of values more than one step apart."""
        return sum(self.histogram[2:])

    @property
    def different_share(self) -> float:
        """Share of values that differ at all."""
        return sum(self.histogram[1:])

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description; an infinite SQNR becomes None."""
        value = dataclasses.asdict(self)
        value["histogram"] = list(self.histogram)
        value["sqnr_db"] = self.sqnr_db if math.isfinite(self.sqnr_db) else None
        value["different_share"] = self.different_share
        value["over_one_share"] = self.over_one_share
        value["finding"] = self.finding.to_json()
        return value


class LayerTally:
    """Adds up one layer's differences image by image.

    Args:
        name: The quantized tensor.
        module: Path of the module, or None.
        zero_point: Of the tensor.
    """

    def __init__(self, name: str, module: str | None, zero_point: int) -> None:
        self.name, self.module, self._zero = name, module, zero_point
        self._counts = np.zeros(HISTOGRAM_BINS, np.int64)
        self._largest = self._sum = self._signal = self._noise = 0.0

    def add(self, expected: NDArray[Any], got: Steps) -> None:
        """Add one image.

        Args:
            expected: The reference's integers.
            got: What the runtime gave, in steps: whole numbers unless it lost the quantization.

        Raises:
            DataError: If the shapes differ.
        """
        if expected.shape != got.shape:
            raise DataError(
                f"{self.name}: the reference gives shape {expected.shape}, the runtime {got.shape}. Compare "
                "engines of the same graph."
            )
        wanted = expected.astype(np.float64)
        gap = got - wanted
        size = np.abs(gap)
        places = np.minimum(np.floor(size + 0.5), HISTOGRAM_BINS - 1).astype(np.int64)
        self._counts += np.bincount(places.ravel(), minlength=HISTOGRAM_BINS)
        self._largest = max(self._largest, float(size.max(initial=0.0)))
        self._sum += float(gap.sum())
        self._signal += float(np.square(wanted - self._zero).sum())
        self._noise += float(np.square(gap).sum())

    def is_plain(self) -> bool:
        """Whether nothing but rounding can be seen: no search for a cause is needed."""
        total = max(1, int(self._counts.sum()))
        return (
            self._largest < 1.5 and self._counts[1:].sum() <= _FEW * total and abs(self._sum) <= _FEW * total
        )

    def result(self, finding: Finding | None = None) -> LayerDifference:
        """Return the sums; without a finding, whether it is rounding is read from them."""
        total = max(1, int(self._counts.sum()))
        bias = self._sum / total
        if finding is None:
            different = int(self._counts[1:].sum())
            finding = (
                Finding(
                    "rounding", f"{different} of {total} values differ, each by one step; bias {bias:+.1e}"
                )
                if different
                else Finding("equal", f"all {total} values are equal")
            )
        ratio = math.inf if self._noise == 0 else -math.inf
        if self._noise and self._signal:
            ratio = 10 * math.log10(self._signal / self._noise)
        shares = tuple(float(count) / total for count in self._counts)
        return LayerDifference(self.name, self.module, total, shares, self._largest, bias, ratio, finding)


def diagnose(
    expected: NDArray[Any],
    got: Steps,
    zero_point: int,
    limits: tuple[int, int],
    alternatives: Mapping[tuple[str, str], NDArray[Any]] | None = None,
    ties: NDArray[np.bool_] | None = None,
    away: NDArray[Any] | None = None,
) -> Finding:
    """Say why a layer's integers differ from the reference's.

    Each possible cause predicts integers. The one that leaves least of the squared difference is named, if
    that is less than a tenth; a difference of at most one step without bias that no cause explains is
    rounding.

    Args:
        expected: The reference's integers, of one or more images.
        got: The runtime's, in steps of the reference's scale, zero point included.
        zero_point: Of the tensor.
        limits: Smallest and largest integer of its type.
        alternatives: Integers that the reference gives under (cause, description).
        ties: Where the exact value lies so near the border between two steps that float32 may round it
            either way.
        away: Integers that the reference gives if such values are rounded away from zero.
    """
    wanted = expected.astype(np.float64)
    gap = got - wanted
    error = float(np.square(gap).sum())
    if error == 0.0:
        return Finding("equal", f"all {wanted.size} values are equal")
    predictions: list[tuple[str, str, Steps]] = [
        (cause, text, value.astype(np.float64)) for (cause, text), value in (alternatives or {}).items()
    ]
    predictions += _arithmetic_causes(wanted, got, zero_point, limits)
    best: tuple[float, str, str, float] | None = None
    for cause, text, prediction in predictions:
        left = float(np.square(got - prediction).sum()) / error
        exact = float(np.mean(np.abs(got - prediction) < 0.5))
        # Where two causes predict alike, the earlier and more specific one is named.
        if left < _left_allowed(cause) and (best is None or left < best[0] - 0.02):
            best = (left, cause, text, exact)
    different, largest, bias = float(np.mean(np.abs(gap) >= 0.5)), float(np.abs(gap).max()), float(gap.mean())
    what = f"{different:.3%} of the values differ, by at most {largest:.3g} steps, bias {bias:+.3f}"
    if ties is not None and largest < 1.5:
        on_border = float(np.mean(ties[np.abs(gap) >= 0.5]))
        if on_border >= _ON_BORDER:
            text = f"{on_border:.1%} of these lie right between two steps, where either way is right"
            same = float(np.mean((got == away)[np.abs(gap) >= 0.5])) if away is not None else 0.0
            if same >= _ON_BORDER:
                text += f", and {same:.1%} are as with halves away from zero"
            return Finding("rounding", f"{what}; {text}")
    if best is not None:
        left, cause, text, exact = best
        return Finding(
            cause, f"{what}; {text}: that explains {1 - left:.1%} of it and {exact:.3%} of the values"
        )
    if largest < 1.5 and abs(bias) <= _BIAS:
        return Finding("rounding", what)
    if float(np.mean(np.abs(gap) > 1.5)) <= _OVER_ONE and abs(bias) <= _BIAS:
        return Finding("rounding", f"{what}; so few differ by more than one step that roundings add up there")
    return Finding("unexplained", f"{what}; no cause that is known here explains it")


def _left_allowed(cause: str) -> float:
    # bfloat16 has an error of its own, which another order of sums makes another.
    return 0.5 if cause == "bfloat16" else 1 - _EXPLAINED


def _arithmetic_causes(
    wanted: Steps, got: Steps, zero_point: int, limits: tuple[int, int]
) -> list[tuple[str, str, Steps]]:
    """Return causes that can be read from the integers alone, each with what it predicts."""
    found: list[tuple[str, str, Steps]] = []
    low, high = limits
    free = (wanted > low) & (wanted < high) & (got > low) & (got < high)
    if free.any():
        centred, seen = wanted[free] - zero_point, got[free] - zero_point
        shift = float(np.rint(np.median(got[free] - wanted[free])))
        if shift:
            found.append(
                (
                    "wrong-zero-point",
                    f"every value is shifted by {shift:+.0f}",
                    np.clip(wanted + shift, low, high),
                )
            )
        power = float(np.dot(centred, centred))
        factor = float(np.dot(centred, seen)) / power if power else 1.0
        if abs(factor - 1) > 0.02 and math.isfinite(factor):
            prediction = np.clip(np.rint(factor * (wanted - zero_point)) + zero_point, low, high)
            found.append(("wrong-scale", f"every value is {factor:.4g} times what it should be", prediction))
    found += _grids(wanted, got, zero_point)
    top, bottom = float(got.max()), float(got.min())
    if top < float(wanted.max()) - 1 and np.mean(got == top) > 0:
        found.append(("saturation", f"values above {top:.0f} become {top:.0f}", np.minimum(wanted, top)))
    if bottom > float(wanted.min()) + 1:
        found.append(
            ("saturation", f"values below {bottom:.0f} become {bottom:.0f}", np.maximum(wanted, bottom))
        )
    return found


def _grids(wanted: Steps, got: Steps, zero_point: int) -> list[tuple[str, str, Steps]]:
    """Recognize values that lie on a coarser or finer grid than the tensor's, or on none."""
    if np.unique(wanted).size < 8:
        return []
    seen = got - zero_point
    if np.mean(np.abs(seen - np.rint(seen)) > _ON_GRID) < _FEW:
        for factor in (4, 3, 2):
            if np.all(np.abs(seen / factor - np.rint(seen / factor)) < _ON_GRID):
                return [("wrong-scale", f"values are stored in steps of {factor}", got)]
        return []
    for factor in (2, 3, 4):
        if np.mean(np.abs(seen * factor - np.rint(seen * factor)) > factor * _ON_GRID) < _FEW:
            return [("wrong-scale", f"values are stored in steps of 1/{factor}", got)]
    inside = float(np.mean(np.abs(got - wanted) <= 0.51))
    if inside > 0.5:
        return [
            ("lost-qdq", f"the values lie on no grid, and {inside:.1%} would round to the right step", got)
        ]
    return []
