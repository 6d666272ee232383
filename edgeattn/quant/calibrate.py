"""Ranges from calibration data: statistics of every planned tensor, then an estimator.

The fp32 graph runs in ONNX Runtime with the planned tensors as outputs: once for the exact minima and
maxima, once for histograms. The symmetric bound of profile s8 and the affine range of profile u8 come
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

__all__ = ["TensorStatistics", "collect_statistics", "estimate_limit", "estimate_range", "weight_scales"]

BINS = 4096
SAMPLES_PER_IMAGE = 32768
_CANDIDATES = np.linspace(0.30, 1.0, 71)

Progress = Callable[[int, int], None]


@dataclasses.dataclass
class TensorStatistics:
    """What was seen of one tensor.

    Attributes:
        low: Smallest value, at most 0.
        high: Largest value, at least 0.
        histogram: Counts over `BINS` equal bins of [low, high].
    """

    low: float
    high: float
    histogram: NDArray[np.int64]

    @property
    def centers(self) -> NDArray[np.float64]:
        """Middle of each bin."""
        edges = np.linspace(self.low, self.high, BINS + 1)
        return (edges[:-1] + edges[1:]) / 2


def collect_statistics(
    model: ModelProto,
    tensors: Sequence[str],
    images: Iterable[NDArray[np.float32]],
    progress: Progress | None = None,
) -> dict[str, TensorStatistics]:
    """Run the float graph and describe the values of `tensors`.

    Args:
        model: fp32 ONNX with one input of batch 1.
        tensors: Names of activations, graph inputs among them.
        images: Arrays (1, C, H, W); iterated twice.
        progress: Called with (done, total) images.

    Raises:
        DataError: If there is no image, or a tensor holds NaN or infinity.
    """
    runner = _Runner(model, tensors)
    batches = list(images)
    if not batches:
        raise DataError("There is no calibration image; give at least 16, better 200.")
    total = 2 * len(batches)
    low = dict.fromkeys(tensors, 0.0)
    high = dict.fromkeys(tensors, 0.0)
    for index, batch in enumerate(batches):
        for name, value in runner(batch).items():
            low[name] = min(low[name], float(value.min()))
            high[name] = max(high[name], float(value.max()))
        if progress:
            progress(index + 1, total)
    for name in tensors:
        if not (np.isfinite(low[name]) and np.isfinite(high[name])):
            raise DataError(
                f"Tensor {name!r} becomes NaN or infinite on the calibration images; "
                "check the weights and the preprocessing."
            )
        if low[name] == high[name]:
            high[name] = 1e-6
    counts = {name: np.zeros(BINS, np.int64) for name in tensors}
    for index, batch in enumerate(batches):
        for name, value in runner(batch).items():
            flat = value.reshape(-1)
            flat = flat[:: max(1, flat.size // SAMPLES_PER_IMAGE)]
            bins = ((flat - low[name]) * (BINS / (high[name] - low[name]))).astype(np.int32)
            counts[name] += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)
        if progress:
            progress(len(batches) + index + 1, total)
    return {name: TensorStatistics(low[name], high[name], counts[name]) for name in tensors}


def estimate_range(
    stats: TensorStatistics, estimator: RangeEstimator, percentile: float = 99.99
) -> tuple[float, float]:
    """Return (low, high) for 256 affine levels; low is 0 where no value was negative."""
    if estimator == "minmax":
        return stats.low, stats.high
    if estimator == "percentile":
        low, high = _percentiles(stats, percentile)
        return (min(low, 0.0) if stats.low < 0 else 0.0), max(high, 1e-6)
    best, best_error = (stats.low, stats.high), np.inf
    for share in _CANDIDATES:
        low, high = stats.low * share, stats.high * share
        error = _squared_error(stats, low, (high - low) / 255, 255)
        if error < best_error:
            best, best_error = (low, high), error
    # The two tails are cut separately, from the best common share on.
    for side in (0, 1) if stats.low < 0 else ():
        start = best
        for share in _CANDIDATES:
            low, high = (start[0] * share, start[1]) if side == 0 else (start[0], start[1] * share)
            error = _squared_error(stats, low, (high - low) / 255, 255)
            if error < best_error:
                best, best_error = (low, high), error
    return best


def estimate_limit(stats: TensorStatistics, estimator: RangeEstimator, percentile: float = 99.99) -> float:
    """Return the bound for symmetric signed levels in [-128, 127] steps of bound/127."""
    largest = max(-stats.low, stats.high)
    if estimator == "minmax":
        return largest
    if estimator == "percentile":
        low, high = _percentiles(stats, percentile)
        return max(-low, high, 1e-6)
    errors = [_squared_error(stats, -128 / 127 * largest * s, largest * s / 127, 255) for s in _CANDIDATES]
    return float(largest * _CANDIDATES[int(np.argmin(errors))])


def weight_scales(weight: NDArray[np.float32], axis: int, estimator: RangeEstimator) -> NDArray[np.float32]:
    """Return a scale for every output channel of a weight quantized to [-127, 127].

    With ``"mse"`` each channel takes the scale of least squared error, otherwise its largest value.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    largest = np.maximum(np.abs(rows).max(axis=1), 1e-9)
    best = largest / 127
    if estimator == "mse":
        least = np.full(len(rows), np.inf)
        for share in np.linspace(1.0, 0.7, 31):
            scale = largest * share / 127
            steps = np.clip(np.rint(rows / scale[:, None]), -127, 127)
            error = ((steps * scale[:, None] - rows) ** 2).sum(axis=1)
            better = error < least * (1 - 1e-9)
            least[better], best[better] = error[better], scale[better]
    return best.astype(np.float32)


def _squared_error(stats: TensorStatistics, low: float, scale: float, levels: int) -> float:
    zero = np.rint(-low / scale)
    steps = np.clip(np.rint(stats.centers / scale) + zero, 0, levels)
    return float((stats.histogram * (stats.centers - (steps - zero) * scale) ** 2).sum())


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
        values = dict(zip(self._names, self._session.run(self._names, {self._input: batch}), strict=True))
        if self._keeps_input:
            values[self._input] = batch
        return values
