"""Small gates are copied to the size at which ONNX Runtime multiplies fast, and no bit changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lowering_graphs import Builder, lower, operators_after_optimization, run

from edgeattn.lower.widen_gates import WidenGates
from edgeattn.onnx_graph import Graph


def noise(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 4, 1), (1, 1, 4, 6)])
@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_widening_a_gate_changes_no_bit(shape: tuple[int, ...], op: str) -> None:
    b = Builder()
    product = b.add(op, b.pair("x", 0.02, 120), b.pair("gate", 1 / 255, 3))
    model = b.model({"x": (1, 3, 4, 6), "gate": shape}, b.pair(product, 0.02, 120))
    lowered, changed = lower(model, WidenGates(min_pixels=1))
    assert changed == ["widen-gates"]
    feeds = {"x": noise(0, 1, 3, 4, 6), "gate": np.abs(noise(1, *shape))}
    np.testing.assert_array_equal(run(model, feeds), run(lowered, feeds))


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 4, 1), (1, 3, 1, 6)])
def test_gates_of_large_maps_are_widened_to_the_map(shape: tuple[int, ...]) -> None:
    """Two operands of one size are what the runtime shares among threads."""
    b = Builder()
    product = b.add("Mul", b.pair("x", 0.02, 120), b.pair("gate", 1 / 255, 3))
    model = b.model({"x": (1, 3, 4, 6), "gate": shape}, b.pair(product, 0.02, 120))
    lowered, changed = lower(model, WidenGates(min_parallel_size=3 * 4 * 6))
    assert changed == ["widen-gates"]
    last = next(node for node in lowered.graph.node if node.op_type == "Mul")
    assert Graph(lowered).shapes()[last.input[1]] == (1, 3, 4, 6)
    feeds = {"x": noise(0, 1, 3, 4, 6), "gate": np.abs(noise(1, *shape))}
    np.testing.assert_array_equal(run(model, feeds), run(lowered, feeds))
    assert lower(model, WidenGates(min_parallel_size=3 * 4 * 6 + 1))[1] == []


def test_gates_over_pixels_are_copied_to_few_channels_only() -> None:
    b = Builder()
    product = b.add("Mul", b.pair("x", 0.02, 120), b.pair("gate", 1 / 255, 0))
    model = b.model({"x": (1, 3, 4, 6), "gate": (1, 1, 4, 6)}, b.pair(product, 0.02, 120))
    assert lower(model, WidenGates(max_copied_channels=2, min_pixels=1))[1] == []
    assert lower(model, WidenGates(max_copied_channels=3, min_pixels=1))[1] == ["widen-gates"]


def test_a_widened_gate_brings_no_transposes_along(tmp_path: Path) -> None:
    """The transposes around the copy cancel ONNX Runtime's own."""
    rng, b = np.random.default_rng(0), Builder()
    x = b.pair("x", 0.02, 120)
    ones = np.full(8, 0.01)
    mapped = b.pair(b.add("Conv", x, b.weight(rng.integers(-9, 9, (8, 3, 1, 1)), ones)), 0.02, 128)
    pooled = b.pair(b.add("AveragePool", mapped, kernel_shape=[4, 6]), 0.02, 128)
    gate = b.pair(b.add("Conv", pooled, b.weight(rng.integers(-9, 9, (8, 8, 1, 1)), ones)), 0.02, 128)
    product = b.pair(b.add("Mul", mapped, gate), 0.02, 128)
    last = b.add("Conv", product, b.weight(rng.integers(-9, 9, (3, 8, 1, 1)), np.full(3, 0.01)))
    model = b.model({"x": (1, 3, 4, 6)}, b.pair(last, 0.02, 128))
    before = operators_after_optimization(model, tmp_path).count("Transpose")
    lowered, changed = lower(model, WidenGates(min_pixels=1))
    assert changed
    assert operators_after_optimization(lowered, tmp_path).count("Transpose") <= before


@pytest.mark.parametrize("limits", [{"max_channels": 2, "min_pixels": 1}, {"min_pixels": 25}])
def test_gates_of_many_channels_or_few_pixels_are_not_widened(limits: dict[str, int]) -> None:
    b = Builder()
    product = b.add("Mul", b.pair("x", 0.02, 120), b.pair("gate", 1 / 255, 0))
    model = b.model({"x": (1, 3, 4, 6), "gate": (1, 3, 1, 1)}, b.pair(product, 0.02, 120))
    assert lower(model, WidenGates(**limits))[1] == []
    assert lower(model, WidenGates(max_channels=3, min_pixels=24))[1] == ["widen-gates"]
