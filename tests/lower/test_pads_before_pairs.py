"""Pads of integers become pads of floats in front of the pair, with the same integers behind it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_graphs import Builder, lower, operators, run

from edgeattn.lower.pads_before_pairs import PadsBeforePairs


def padded_model(value: int, zero_point: int, *, also_plain: bool, dtype: type = np.int8) -> onnx.ModelProto:
    rng, b = np.random.default_rng(3), Builder()
    parameters = b.constant(np.float32(0.05)), b.constant(dtype(zero_point))
    integers = b.add("QuantizeLinear", "x", *parameters)
    amounts = b.constant(np.array([0, 0, 1, 2, 0, 0, 0, 1], np.int64))
    padded = b.add("DequantizeLinear", b.add("Pad", integers, amounts, b.constant(dtype(value))), *parameters)
    weight = b.weight(rng.integers(-127, 128, (4, 1, 3, 3)), np.full(4, 2.0**-7, np.float32))
    result = b.add("Conv", padded, weight, group=4)
    if also_plain:
        result = b.add(
            "Add", result, b.add("GlobalAveragePool", b.add("DequantizeLinear", integers, *parameters))
        )
    return b.model({"x": (1, 4, 6, 5)}, result)


@pytest.mark.parametrize("also_plain", [False, True])
@given(value=st.integers(-128, 127), zero_point=st.integers(-128, 127), seed=st.integers(0, 100))
@settings(max_examples=15)
def test_integers_stay(also_plain: bool, value: int, zero_point: int, seed: int) -> None:
    model = padded_model(value, zero_point, also_plain=also_plain)
    lowered, changed = lower(model, PadsBeforePairs())
    assert changed == ["pads-before-pairs"]
    nodes = {node.output[0]: node for node in lowered.graph.node}
    pad = next(node for node in lowered.graph.node if node.op_type == "Pad")
    assert pad.input[0] not in nodes
    # What reads the integers without the pad keeps its own pair.
    assert operators(lowered).count("QuantizeLinear") == 1 + also_plain
    feeds = {"x": np.random.default_rng(seed).normal(size=(1, 4, 6, 5)).astype(np.float32) * 3}
    np.testing.assert_array_equal(run(lowered, feeds), run(model, feeds))
    assert lower(lowered, PadsBeforePairs())[1] == []


def test_pads_of_floats_are_left_alone() -> None:
    b = Builder()
    padded = b.add(
        "Pad", "x", b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)), b.constant(np.float32(0))
    )
    model = b.model({"x": (1, 4, 6, 5)}, b.pair(padded, 0.05, 3))
    assert lower(model, PadsBeforePairs())[1] == []
