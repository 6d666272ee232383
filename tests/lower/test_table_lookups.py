"""Small activations between 8-bit grids are looked up: the same integers with half the kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_graphs import Builder, lower, operators, operators_after_optimization, run

from edgeattn.lower.passes import PASSES
from edgeattn.lower.table_lookups import TableLookups

FUNCTIONS = ["Celu", "Elu", "Erf", "HardSigmoid", "HardSwish", "Selu", "Softplus", "Softsign", "Tanh"]


def activation(
    function: str,
    before: tuple[float, int],
    behind: tuple[float, int],
    shape: tuple[int, ...] = (1, 4, 8, 8),
    dtype: type[np.integer] = np.uint8,  # type: ignore[type-arg]
) -> onnx.ModelProto:
    b = Builder()
    return b.model({"x": shape}, b.pair(b.add(function, b.pair("x", *before, dtype)), *behind, dtype))


def every_integer(scale: float, zero_point: int, shape: tuple[int, ...], signed: bool) -> np.ndarray:  # type: ignore[type-arg]
    integers = np.arange(256).astype(np.uint8).view(np.int8 if signed else np.uint8)
    return ((integers.astype(np.float32) - zero_point) * np.float32(scale)).reshape(shape)


@given(
    function=st.sampled_from(FUNCTIONS),
    scale=st.floats(2**-12, 0.25, width=32),
    new_scale=st.floats(2**-12, 0.25, width=32),
    zero_points=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    signed=st.booleans(),
    shape=st.sampled_from([(256,), (2, 128), (1, 4, 8, 8), (1, 64, 4, 1)]),
)
@settings(max_examples=60, deadline=None)
def test_a_table_holds_what_onnx_runtime_computes(
    function: str,
    scale: float,
    new_scale: float,
    zero_points: tuple[int, int],
    signed: bool,
    shape: tuple[int, ...],
) -> None:
    one, other = (value - 128 if signed else value for value in zero_points)
    kind = np.int8 if signed else np.uint8
    model = activation(function, (scale, one), (new_scale, other), shape, kind)
    lowered, changed = lower(model, TableLookups())
    assert changed == ["table-lookups"]
    assert function not in operators(lowered)
    feeds = {"x": every_integer(scale, one, shape, signed)}
    step = np.float32(new_scale)
    before, after = (np.rint(run(item, feeds) / step).astype(int) for item in (model, lowered))
    optimized = np.rint(run(lowered, feeds, optimized=True) / step).astype(int)
    np.testing.assert_array_equal(after, optimized)
    # Kernels for Tanh, Erf and Exp are approximations: theirs may lie on the other side of a border.
    limit = 0 if function in ("HardSigmoid", "HardSwish", "Softsign") else 1
    assert np.abs(before - after).max() <= limit
    assert (before != after).mean() <= 0.02


def gate(size: int = 14) -> onnx.ModelProto:
    rng, b = np.random.default_rng(0), Builder()
    squeeze = b.weight(rng.integers(-127, 128, (8, 16, 1, 1)), rng.uniform(0.001, 0.02, 8))
    expand = b.weight(rng.integers(-127, 128, (16, 8, 1, 1)), rng.uniform(0.001, 0.02, 16))
    squeezed = b.pair(b.add("Conv", b.pair("x", 0.02, 120), squeeze), 0.03, 100)
    active = b.pair(b.add("HardSwish", squeezed), 0.02, 20)
    return b.model({"x": (1, 16, size, 1)}, b.pair(b.add("Conv", active, expand), 0.05, 128))


def test_a_lookup_is_two_kernels_and_brings_no_transposes_along(tmp_path: Path) -> None:
    before = operators_after_optimization(gate(), tmp_path)
    assert [before.count(name) for name in ("HardSigmoid", "Mul", "QLinearConv")] == [1, 1, 2]
    after = operators_after_optimization(lower(gate(), TableLookups())[0], tmp_path)
    assert [after.count(name) for name in ("Cast", "Gather", "QLinearConv", "HardSigmoid")] == [1, 1, 2, 0]
    assert (after.count("QuantizeLinear"), after.count("DequantizeLinear")) == (1, 1)
    assert after.count("Transpose") <= before.count("Transpose")


def test_large_maps_are_computed() -> None:
    assert lower(gate(size=4096), TableLookups())[1] == []


def test_what_something_else_reads_too_is_computed() -> None:
    b = Builder()
    x = b.pair("x", 0.05, 128)
    product = b.add("Mul", x, b.pair(b.add("HardSwish", x), 0.05, 20))
    assert lower(b.model({"x": (1, 4, 8, 8)}, b.pair(product, 0.1, 20)), TableLookups())[1] == []


@pytest.mark.parametrize("target", ["ort-cpu", "ort-web"])
def test_onnx_runtime_gets_tables(target: str) -> None:
    assert "table-lookups" in [item.name for item in PASSES[target]]
