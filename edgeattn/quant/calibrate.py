"""Ranges from calibration data: statistics of every planned tensor, then an estimator.

The fp32 graph runs in ONNX Runtime with the planned tensors as outputs: once for the exact minima and
maxima, once for histograms where the estimator needs them. The symmetric bound of profile s8 and the affine range of profile u8 come
from the same histogram, each searched for its own number of levels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeattn.errors import DataError
from edgeattn.extras import require
from edgeattn.onnx_graph import Graph
from edgeattn.quant.config import RangeEstimator

__all__ = [
    "TensorStatistics",
    "collect_channel_extent",
    "collect_statistics",
    "estimate_limit",
    "estimate_range",
    "weight_scales",
]

BINS = 4096
SAMPLES_PER_IMAGE = 32768
_SMALLEST_EXTENT = 1e-6
_CANDIDATES = np.linspace(0.05, 1.0, 96)

Progress = Callable[[int, int], None]


@dataclasses.dataclass
class TensorStatistics:
    """What was seen of one tensor.

    Attributes:
        low: Smallest value, at most 0.
        high: Largest value, at least 0.
        mean_low: Mean over images of the smallest value of each, at most 0.
        mean_high: Mean over images of the largest value of each, at least 0.
        histogram: Counts, or sums of weights, over `BINS` equal bins of [low, high]; zeros where none was
            asked for.
    """

    low: float
    high: float
    mean_low: float
    mean_high: float
    histogram: NDArray[np.int64] | NDArray[np.float64]

    def occupied(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the middle and the count of each bin that holds anything."""
        edges = np.linspace(self.low, self.high, BINS + 1)
        bins = np.flatnonzero(self.histogram)
        return ((edges[:-1] + edges[1:]) / 2)[bins], self.histogram[bins].astype(np.float64)


def collect_statistics(
    model: ModelProto,
    tensors: Sequence[str],
    images: Iterable[NDArray[np.float32]],
    progress: Progress | None = None,
    *,
    histograms: bool = True,
) -> dict[str, TensorStatistics]:
    """Run the float graph and describe the values of `tensors`.

    Args:
        model: fp32 ONNX with one input of batch 1.
        tensors: Names of activations, graph inputs among them.
        images: Arrays (1, C, H, W); iterated once or twice.
        progress: Called with (done, total) images.
        histograms: Whether to run the images a second time for histograms.

    Raises:
        DataError: If there is no image, or a tensor holds NaN or infinity.
    """
    runner = _Runner(model, tensors)
    batches = list(images)
    if not batches:
        raise DataError("There is no calibration image; give at least 16, better 200.")
    total = (2 if histograms else 1) * len(batches)
    extremes = {name: np.zeros((2, len(batches))) for name in tensors}
    for index, batch in enumerate(batches):
        for name, value in runner(batch).items():
            # NumPy's minimum keeps a NaN, Python's min drops it.
            extremes[name][:, index] = np.minimum(value.min(), 0.0), np.maximum(value.max(), 0.0)
        if progress:
            progress(index + 1, total)
    found = {name: _statistics(name, seen) for name, seen in extremes.items()}
    for index, batch in enumerate(batches) if histograms else ():
        for name, value in runner(batch).items():
            stats = found[name]
            flat = value.reshape(-1)
            flat = flat[:: max(1, flat.size // SAMPLES_PER_IMAGE)]
            bins = ((flat - stats.low) * (BINS / (stats.high - stats.low))).astype(np.int32)
            stats.histogram += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)
        if progress:
            progress(len(batches) + index + 1, total)
    return found


def collect_channel_extent(
    model: ModelProto, tensors: Sequence[str], images: Iterable[NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Return the largest magnitude of every channel of some tensors (N, C, ...), shape (C,)."""
    runner = _Runner(model, tensors)
    extent: dict[str, NDArray[np.float32]] = {}
    for batch in images:
        for name, value in runner(batch).items():
            seen = np.abs(value).max(axis=(0, *range(2, value.ndim)))
            extent[name] = np.maximum(extent[name], seen) if name in extent else seen
    return extent


def _statistics(name: str, extremes: NDArray[np.float64]) -> TensorStatistics:
    """Describe a tensor by the extremes of each image, shape (2, images)."""
    if not np.isfinite(extremes).all():
        raise DataError(
            f"Tensor {name!r} becomes NaN or infinite on the calibration images; "
            "check the weights and the preprocessing."
        )
    low, high = float(extremes[0].min()), float(extremes[1].max())
    mean_low, mean_high = float(extremes[0].mean()), float(extremes[1].mean())
    if high - low < _SMALLEST_EXTENT:
        high = mean_high = _SMALLEST_EXTENT
    return TensorStatistics(low, high, mean_low, mean_high, np.zeros(BINS, np.int64))


def estimate_range(
    stats: TensorStatistics, estimator: RangeEstimator, percentile: float = 99.99
) -> tuple[float, float]:
    """Return (low, high) for 256 affine levels; low is 0 where no value was negative."""
    if estimator == "minmax":
        return stats.low, stats.high
    if estimator == "mean_minmax":
        return stats.mean_low, stats.mean_high
    if estimator == "percentile":
        low, high = _percentiles(stats, percentile)
        return (min(low, 0.0) if stats.low < 0 else 0.0), max(high, 1e-6)
    occupied = stats.occupied()
    best, best_error = (stats.low, stats.high), np.inf
    for share in _CANDIDATES:
        low, high = stats.low * share, stats.high * share
        error = _squared_error(*occupied, low, (high - low) / 255, 255)
        if error < best_error:
            best, best_error = (low, high), error
    # The two tails are cut separately, from the best common share on.
    for side in (0, 1) if stats.low < 0 else ():
        start = best
        for share in _CANDIDATES:
            low, high = (start[0] * share, start[1]) if side == 0 else (start[0], start[1] * share)
            error = _squared_error(*occupied, low, (high - low) / 255, 255)
            if error < best_error:
                best, best_error = (low, high), error
    return best


def estimate_limit(stats: TensorStatistics, estimator: RangeEstimator, percentile: float = 99.99) -> float:
    """Return the bound for symmetric signed levels in [-128, 127] steps of bound/127."""
    largest = max(-stats.low, stats.high)
    if estimator == "minmax":
        return largest
    if estimator == "mean_minmax":
        return max(-stats.mean_low, stats.mean_high)
    if estimator == "percentile":
        low, high = _percentiles(stats, percentile)
        return max(-low, high, 1e-6)
    occupied = stats.occupied()
    limits = largest * _CANDIDATES
    errors = [_squared_error(*occupied, -128 / 127 * limit, limit / 127, 255) for limit in limits]
    return float(limits[int(np.argmin(errors))])


def weight_scales(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return a scale for every output channel of a weight quantized to [-127, 127].

    Each channel takes the scale of least squared error, its largest value where that is no worse.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    largest = np.maximum(np.abs(rows).max(axis=1), 1e-9)
    best = largest / 127
    least = np.full(len(rows), np.inf)
    for share in np.linspace(1.0, 0.7, 31):
        scale = largest * share / 127
        steps = np.clip(np.rint(rows / scale[:, None]), -127, 127)
        error = ((steps * scale[:, None] - rows) ** 2).sum(axis=1)
        better = error < least * (1 - 1e-9)
        least[better], best[better] = error[better], scale[better]
    scales: NDArray[np.float32] = best.astype(np.float32)
    return scales


def _squared_error(
    values: NDArray[np.float64], counts: NDArray[np.float64], low: float, scale: float, levels: int
) -> float:
    zero = np.rint(-low / scale)
    steps = np.clip(np.rint(values / scale) + zero, 0, levels)
    return float(np.dot(counts, (values - (steps - zero) * scale) ** 2))


def _percentiles(stats: TensorStatistics, percentile: float) -> tuple[float, float]:
    share = np.cumsum(stats.histogram) / max(1, stats.histogram.sum())
    tail = 1 - percentile / 100
    first = int(np.searchsorted(share, tail))
    last = int(np.searchsorted(share, 1 - tail))
    edges = np.linspace(stats.low, stats.high, BINS + 1)
    return float(edges[min(first, BINS)]), float(edges[min(last + 1, BINS)])


class _Runner:
    """Runs a float graph in ONNX Runtime and returns named activations."""

    def __init__(self, model: ModelProto, tensors: Sequence[str]) -> None:
        ort = require("onnxruntime", purpose="calibration")
        graph = Graph(model)
        self._input = graph.input_names[0]
        self._names = [name for name in tensors if name != self._input]
        self._keeps_input = self._input in tensors
        extra = [name for name in self._names if name not in graph.output_names]
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            graph.to_model(extra).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        # An empty list of names would mean every output.
        results = self._session.run(self._names, {self._input: batch}) if self._names else []
        values = dict(zip(self._names, results, strict=True))
        if self._keeps_input:
            values[self._input] = batch
        return values
