"""Maxima over few channels are taken in three dimensions: no bit changes, in ONNX Runtime or OpenVINO."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_graphs import Builder, lower, operators, run, run_openvino
from onnx import numpy_helper

from edgeattn.lower.flat_maxima import FlatMaxima
from edgeattn.onnx_graph import Graph


def maximum_model(
    seed: int = 0,
    *,
    channels: int = 16,
    size: tuple[int, int] = (32, 32),
    axis: int = 1,
    keepdims: int = 1,
    quantized: bool = True,
) -> onnx.ModelProto:
    """Of a convolution's channels, as in the gates over pixels of Triplet Attention and CBAM."""
    rng, b = np.random.default_rng(seed), Builder()
    weight = b.weight(rng.integers(-64, 65, (channels, 3, 1, 1)), rng.uniform(0.001, 0.02, channels))
    mapped = b.add("Conv", b.pair("x", 0.02, 114), weight)
    source = b.pair(mapped, 0.03, 120) if quantized else mapped
    greatest = b.add("ReduceMax", source, axes=[axis], keepdims=keepdims)
    return b.model({"x": (1, 3, *size)}, b.pair(greatest, 0.03, 120))


@given(
    seed=st.integers(0, 10_000),
    channels=st.integers(1, 31),
    size=st.sampled_from([(32, 32), (33, 40), (1024, 1), (1, 1031)]),
    keepdims=st.sampled_from([0, 1]),
)
@settings(max_examples=20, deadline=None)
def test_a_flat_maximum_is_the_same_maximum(
    seed: int, channels: int, size: tuple[int, int], keepdims: int
) -> None:
    model = maximum_model(seed, channels=channels, size=size, keepdims=keepdims)
    lowered, changed = lower(model, FlatMaxima())
    assert changed == ["flat-maxima"]
    feeds = {"x": np.random.default_rng(seed).standard_normal((1, 3, *size)).astype(np.float32)}
    expected = run(model, feeds)
    np.testing.assert_array_equal(run(lowered, feeds), expected)
    np.testing.assert_array_equal(run_openvino(lowered, feeds), run_openvino(model, feeds))


def test_constants_of_the_graph_keep_their_values() -> None:
    model = maximum_model()
    name = next(node.output[0] for node in model.graph.node if node.op_type == "ReduceMax")
    for taken in (f"{name}.size", f"{name}.flat", f"{name}.flat.size"):
        model.graph.initializer.append(numpy_helper.from_array(np.arange(3), taken))
    graph = Graph(lower(model, FlatMaxima())[0])
    sizes = [graph.constants[node.input[1]].tolist() for node in graph.nodes if node.op_type == "Reshape"]
    assert sorted(sizes) == [[1, 1, 32, 32], [1, 16, 1024]]


def test_only_the_maximum_is_respelled() -> None:
    model = maximum_model()
    before, after = operators(model), operators(lower(model, FlatMaxima())[0])
    place = before.index("ReduceMax")
    assert after == [*before[:place], "Reshape", "ReduceMax", "Reshape", *before[place + 1 :]]


@pytest.mark.parametrize(
    "model",
    [
        maximum_model(channels=32),
        maximum_model(size=(31, 33)),
        maximum_model(axis=2),
        maximum_model(axis=-3),
        maximum_model(quantized=False),
    ],
    ids=["many channels", "a small map", "over rows", "counted from the end", "float"],
)
def test_other_maxima_stay_as_they_are(model: onnx.ModelProto) -> None:
    assert lower(model, FlatMaxima())[1] == []
