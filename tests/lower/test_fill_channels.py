"""Images get a fourth channel of zeros where ONNX Runtime convolves them: no bit changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_graphs import Builder, lower, operators, operators_after_optimization, run

from edgeattn.lower.fill_channels import FillChannels, reads_filled_image
from edgeattn.lower.passes import PASSES
from edgeattn.onnx_graph import Graph


def image_model(
    seed: int = 0,
    *,
    channels: int = 3,
    outputs: int = 16,
    kernel: int = 3,
    group: int = 1,
    zero_point: int = 114,
    before: str = "",
) -> onnx.ModelProto:
    rng, b = np.random.default_rng(seed), Builder()
    scales = rng.uniform(0.001, 0.02, outputs)
    # Two products of 255 and 64 fit 16 bits. Larger ones saturate without VNNI, and a filled image makes other pairs.
    weight = b.weight(rng.integers(-64, 65, (outputs, channels // group, kernel, kernel)), scales)
    bias = b.constant(rng.standard_normal(outputs).astype(np.float32))
    source = b.add(before, "x") if before else "x"
    padding = [kernel // 2] * 4
    out = b.add(
        "Conv", b.pair(source, 0.02, zero_point), weight, bias, strides=[2, 2], pads=padding, group=group
    )
    return b.model({"x": (1, channels, 9, 8)}, b.pair(out, 0.05, 128))


@given(
    seed=st.integers(0, 10_000),
    channels=st.integers(1, 11),
    kernel=st.sampled_from([2, 3, 5]),
    outputs=st.sampled_from([16, 24, 40]),
    zero_point=st.sampled_from([0, 114, 255]),
)
@settings(max_examples=25, deadline=None)
def test_filling_an_image_changes_no_bit(
    seed: int, channels: int, kernel: int, outputs: int, zero_point: int
) -> None:
    model = image_model(seed, channels=channels, kernel=kernel, outputs=outputs, zero_point=zero_point)
    lowered, changed = lower(model, FillChannels())
    assert changed == (["fill-channels"] if channels % 4 else [])
    feeds = {"x": np.random.default_rng(seed).standard_normal((1, channels, 9, 8)).astype(np.float32)}
    for optimized in (False, True):
        before = run(model, feeds, optimized=optimized)
        np.testing.assert_array_equal(before, run(lowered, feeds, optimized=optimized))


def test_onnx_runtime_pads_integers_and_keeps_its_integer_convolution(tmp_path: Path) -> None:
    lowered = lower(image_model(), FillChannels())[0]
    after = operators_after_optimization(lowered, tmp_path)
    assert [after.count(name) for name in ("QuantizeLinear", "Pad", "QLinearConv")] == [1, 1, 1]
    assert after.index("QuantizeLinear") < after.index("Pad") < after.index("QLinearConv")


@pytest.mark.parametrize(
    "model",
    [
        image_model(channels=4),
        image_model(kernel=1),
        image_model(outputs=8),
        image_model(outputs=20),
        image_model(channels=3, outputs=24, group=3),
        image_model(before="Relu"),
    ],
    ids=["aligned", "pointwise", "few outputs", "odd outputs", "depthwise", "no image"],
)
def test_what_gains_nothing_stays(model: onnx.ModelProto) -> None:
    assert lower(model, FillChannels())[1] == []


def test_other_readers_of_the_image_read_what_they_read() -> None:
    rng, b = np.random.default_rng(0), Builder()
    image = b.pair("x", 0.02, 114)
    weight = b.weight(rng.integers(-127, 128, (16, 3, 3, 3)), rng.uniform(0.001, 0.02, 16))
    narrow = b.weight(rng.integers(-127, 128, (16, 3, 1, 1)), rng.uniform(0.001, 0.02, 16))
    both = b.add("Add", b.add("Conv", image, weight, pads=[1] * 4), b.add("Conv", image, narrow))
    model = b.model({"x": (1, 3, 9, 8)}, both)
    lowered, changed = lower(model, FillChannels())
    assert changed
    assert operators(lowered).count("Pad") == 1
    feeds = {"x": rng.standard_normal((1, 3, 9, 8)).astype(np.float32)}
    np.testing.assert_array_equal(run(model, feeds), run(lowered, feeds))


def test_a_graph_says_beforehand_which_convolutions_read_a_filled_image() -> None:
    for model, wanted in ((image_model(), True), (image_model(channels=4), False)):
        graph = Graph(model)
        assert [reads_filled_image(graph, node) for node in graph.nodes if node.op_type == "Conv"] == [wanted]


def test_browsers_get_the_image_as_it_is() -> None:
    assert "fill-channels" in [item.name for item in PASSES["ort-cpu"]]
    assert "fill-channels" not in [item.name for item in PASSES["ort-web"]]
