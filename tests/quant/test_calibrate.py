"""Ranges follow from samples as each estimator says, and always hold zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from quant_networks import inverted_residual, pictures, run

from edgeattn.errors import DataError
from edgeattn.onnx_graph import Graph
from edgeattn.quant.calibrate import (
    BINS,
    TensorStatistics,
    collect_channel_extent,
    collect_statistics,
    estimate_limit,
    estimate_range,
    weight_scales,
)
from edgeattn.quant.config import RangeEstimator
from edgeattn.quant.plan import ActivationRange

ESTIMATORS: tuple[RangeEstimator, ...] = ("minmax", "mean_minmax", "percentile", "mse")
TENSORS = ("input", "project", "depthwise_act")


def statistics(values: np.ndarray) -> TensorStatistics:
    low, high = min(0.0, float(values.min())), max(float(values.max()), 1e-3)
    counts, _ = np.histogram(values, BINS, (low, high))
    return TensorStatistics(low, high, low / 2, high / 2, counts)


def squared_error(stats: TensorStatistics, low: float, high: float) -> float:
    scale = (high - low) / 255
    zero = round(-low / scale)
    values, counts = stats.occupied()
    steps = np.clip(np.rint(values / scale) + zero, 0, 255)
    return float((counts * (values - (steps - zero) * scale) ** 2).sum())


samples = arrays(np.float64, 200, elements=st.floats(-100, 100, width=32))


@given(values=samples, estimator=st.sampled_from(ESTIMATORS))
def test_ranges_hold_zero_and_are_not_empty(values: np.ndarray, estimator: RangeEstimator) -> None:
    stats = statistics(values)
    low, high = estimate_range(stats, estimator)
    limit = estimate_limit(stats, estimator)
    item = ActivationRange(low=low, high=high, limit=limit)
    assert item.low <= 0 <= item.high
    assert stats.low <= low
    if stats.low == 0:
        assert low == 0
    assert limit <= max(-stats.low, stats.high) * 1.001


@given(values=samples)
def test_mse_is_never_worse_than_minmax(values: np.ndarray) -> None:
    stats = statistics(values)
    found = squared_error(stats, *estimate_range(stats, "mse"))
    assert found <= squared_error(stats, *estimate_range(stats, "minmax")) * (1 + 1e-9)


def test_mse_of_a_non_negative_tensor_is_the_best_of_all_candidates() -> None:
    stats = statistics(np.random.default_rng(0).exponential(size=20_000))
    errors = {share: squared_error(stats, 0.0, stats.high * share) for share in np.linspace(0.05, 1, 96)}
    best = min(errors, key=errors.__getitem__)
    assert best < 0.99
    assert estimate_range(stats, "mse")[1] == pytest.approx(stats.high * best)


def test_extremes_are_those_of_the_images() -> None:
    model, images = inverted_residual(), pictures(5)
    found = collect_statistics(model, TENSORS, images, histograms=False)
    seen = [run(Graph(model).to_model(TENSORS[1:]), image, *TENSORS[1:]) for image in images]
    for index, name in enumerate(TENSORS[1:]):
        lows = [min(0.0, float(values[index].min())) for values in seen]
        highs = [max(0.0, float(values[index].max())) for values in seen]
        stats = found[name]
        assert stats.low == pytest.approx(min(lows), rel=1e-5)
        assert stats.high == pytest.approx(max(highs), rel=1e-5)
        assert estimate_range(stats, "mean_minmax") == pytest.approx(
            (np.mean(lows), np.mean(highs)), rel=1e-5
        )
    assert found["input"].high == max(image.max() for image in images)


def test_histograms_count_every_value() -> None:
    model, images = inverted_residual(), pictures(3)
    reports: list[tuple[int, int]] = []
    found = collect_statistics(model, TENSORS, images, lambda *now: reports.append(now))
    assert found["input"].histogram.sum() == sum(image.size for image in images)
    assert reports[-1] == (6, 6)
    assert reports == sorted(reports)


def test_channel_extent_is_the_largest_magnitude() -> None:
    model, images = inverted_residual(), pictures(3)
    found = collect_channel_extent(model, ["project"], images)["project"]
    values = [run(Graph(model).to_model(["project"]), image, "project")[0] for image in images]
    np.testing.assert_allclose(found, np.abs(values).max(axis=(0, 1, 3, 4)), rtol=1e-5)


def test_a_tensor_that_is_always_zero_gets_a_range() -> None:
    found = collect_statistics(inverted_residual(), ["input"], [np.zeros((1, 3, 8, 8), np.float32)])
    for estimator in ESTIMATORS:
        low, high = estimate_range(found["input"], estimator)
        assert low == 0 < high


def test_nan_and_no_images_are_refused() -> None:
    model = inverted_residual()
    with pytest.raises(DataError, match="NaN"):
        collect_statistics(model, TENSORS, [np.full((1, 3, 8, 8), np.nan, np.float32)])
    with pytest.raises(DataError, match="no calibration image"):
        collect_statistics(model, TENSORS, [])


@given(weight=arrays(np.float32, (3, 8), elements=st.floats(-4, 4, width=32)))
def test_weight_scales_are_no_worse_than_the_largest_value(weight: np.ndarray) -> None:
    scales = weight_scales(weight, 0)
    assert (scales > 0).all()

    def error(scale: np.ndarray) -> np.ndarray:
        scale = np.maximum(scale.astype(np.float64), 1e-12)[:, None]
        result: np.ndarray = ((np.clip(np.rint(weight / scale), -127, 127) * scale - weight) ** 2).sum(axis=1)
        return result

    largest = np.maximum(np.abs(weight.astype(np.float64)).max(axis=1), 1e-9)
    # A scale that is rounded to float32 moves each weight by up to that share of it.
    rounded = np.sqrt(weight.shape[1]) * largest * 2.0**-24
    assert (np.sqrt(error(scales)) <= np.sqrt(error(largest / 127)) * (1 + 1e-6) + 1.01 * rounded).all()


def test_weights_on_a_grid_stay_on_it_whatever_their_axis() -> None:
    grid = np.random.default_rng(0).integers(-127, 128, (4, 6)).astype(np.float32)
    grid[:, 0] = 127
    steps = np.asarray([0.5, 0.25, 0.01, 2.0], np.float32)
    np.testing.assert_allclose(weight_scales(grid * steps[:, None], 0), steps, rtol=1e-6)
    np.testing.assert_allclose(weight_scales((grid * steps[:, None]).T, 1), steps, rtol=1e-6)
