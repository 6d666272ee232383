"""Hard swishes become products of integers in ONNX Runtime: at most values between two steps change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_graphs import Builder, lower, operators, operators_after_optimization, run

from edgeattn.lower.integer_swish import IntegerSwish
from edgeattn.lower.passes import passes_for

RESULT_SCALE = 0.0314159


def swish_model(
    steps: float = 64,
    zero_point: int | None = None,
    *,
    dtype: type[np.integer[Any]] = np.uint8,
    quantized: bool = True,
) -> onnx.ModelProto:
    """A hard swish of a convolution's result, on a grid of which 3 is `steps` steps and -3 the lowest integer."""
    rng, b = np.random.default_rng(0), Builder()
    middle = round(steps) + np.iinfo(dtype).min if zero_point is None else zero_point
    weight = b.weight(rng.integers(-64, 65, (8, 3, 1, 1)), rng.uniform(0.01, 0.05, 8))
    mapped = b.add("Conv", b.pair("x", 0.02, 114), weight)
    swish = b.add("HardSwish", b.pair(mapped, 3 / steps, middle, dtype))
    result = b.pair(swish, RESULT_SCALE, 13 + np.iinfo(dtype).min, dtype) if quantized else swish
    return b.model({"x": (1, 3, 8, 8)}, result)


@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(8, 120),
    above=st.integers(0, 60),
    dtype=st.sampled_from([np.uint8, np.int8]),
)
@settings(max_examples=30, deadline=None)
def test_a_product_of_integers_is_the_hard_swish(
    seed: int, steps: int, above: int, dtype: type[np.integer[Any]]
) -> None:
    middle = int(np.iinfo(dtype).min) + steps + above
    model = swish_model(steps, middle, dtype=dtype)
    lowered, changed = lower(model, IntegerSwish())
    assert changed == ["integer-swish"]
    assert "HardSwish" not in operators(lowered)
    feeds = {"x": np.random.default_rng(seed).normal(0, 2, (1, 3, 8, 8)).astype(np.float32)}
    expected = run(model, feeds)
    for optimized in (False, True):
        steps_apart = np.abs(run(lowered, feeds, optimized=optimized) - expected) / RESULT_SCALE
        assert steps_apart.max() < 1.01
        assert np.mean(steps_apart > 0.5) < 0.02


def test_every_integer_of_the_input_gives_the_same_integer() -> None:
    b = Builder()
    swish = b.add("HardSwish", b.pair("x", 3 / 70, 80))
    model = b.model({"x": (1, 1, 1, 256)}, b.pair(swish, 0.031, 12))
    feeds = {"x": ((np.arange(256) - 80) * (3 / 70)).astype(np.float32).reshape(1, 1, 1, 256)}
    lowered, _ = lower(model, IntegerSwish())
    apart = np.abs(run(lowered, feeds, optimized=True) - run(model, feeds)) / 0.031
    assert apart.max() < 1.01
    assert np.count_nonzero(apart > 0.5) <= 1


def test_onnx_runtime_computes_it_in_integers(tmp_path: Path) -> None:
    lowered, _ = lower(swish_model(), IntegerSwish())
    found = operators_after_optimization(lowered, tmp_path)
    assert found.count("QLinearMul") == 1
    assert not {"HardSigmoid", "HardSwish", "Mul"} & set(found)
    before = operators_after_optimization(swish_model(), tmp_path)
    assert "QLinearMul" not in before, "ONNX Runtime has learned it: the pass may not be needed any more"


@pytest.mark.parametrize(("zero_point", "clips"), [(64, 1), (191, 1), (100, 1)])
def test_values_beyond_the_knees_are_clipped(zero_point: int, clips: int) -> None:
    lowered, _ = lower(swish_model(64, zero_point), IntegerSwish())
    assert operators(lowered).count("Clip") == clips


def test_nothing_is_clipped_where_the_grid_ends_at_both_knees() -> None:
    lowered, changed = lower(swish_model(127.5, 127), IntegerSwish())
    assert changed == [], "3 is no whole number of steps"
    lowered, changed = lower(swish_model(130, 130), IntegerSwish())
    assert changed == ["integer-swish"]
    assert "Clip" not in operators(lowered), "the grid ends below 3"


@pytest.mark.parametrize(
    "model",
    [
        swish_model(64.3, 64),
        swish_model(64, 63),
        swish_model(64, quantized=False),
    ],
    ids=["3 lies between two steps", "-3 is no integer of the type", "nothing quantizes the result"],
)
def test_other_hard_swishes_stay(model: onnx.ModelProto) -> None:
    lowered, changed = lower(model, IntegerSwish())
    assert changed == []
    assert operators(lowered) == operators(model)


@pytest.mark.parametrize(
    ("target", "expected"),
    [("ort-cpu", True), ("ort-portable", True), ("ort-web", False), ("openvino-cpu", False)],
)
def test_processors_that_onnx_runtime_has_integer_kernels_for_get_it(target: str, expected: bool) -> None:
    assert ("integer-swish" in [item.name for item in passes_for(target)]) == expected
