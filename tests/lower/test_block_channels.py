"""Depthwise convolutions get whole blocks of 16 channels for ONNX Runtime: no bit changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_graphs import Builder, lower, open_session, run

from edgeattn.lower import block_channels
from edgeattn.lower.block_channels import BlockChannels
from edgeattn.lower.passes import PASSES
from edgeattn.onnx_graph import Graph, attribute


def block_model(
    seed: int = 0,
    *,
    channels: int = 24,
    kernel: int = 3,
    has_gate: bool = False,
    is_flat: bool = False,
    reads_all: bool = True,
) -> onnx.ModelProto:
    """A mobile block: a pointwise layer, a depthwise one, perhaps a gate, a pointwise layer or a classifier."""
    rng, b = np.random.default_rng(seed), Builder()

    def layer(source: str, outputs: int, inputs: int, size: int = 1, group: int = 1) -> str:
        # Two products of 255 and 64 fit 16 bits: without VNNI larger ones saturate in pairs.
        weight = b.weight(
            rng.integers(-64, 65, (outputs, inputs // group, size, size)), rng.uniform(0.001, 0.02, outputs)
        )
        bias = b.constant(rng.standard_normal(outputs).astype(np.float32))
        return b.add("Conv", source, weight, bias, group=group, pads=[size // 2] * 4)

    wide = b.pair(b.add("Relu", layer(b.pair("x", 0.02, 114), channels, 8)), 0.03, 0)
    wide = b.pair(b.add("Relu", layer(wide, channels, channels, kernel, channels)), 0.03, 0)
    if has_gate:
        mean = b.pair(b.add("GlobalAveragePool", wide), 0.02, 0)
        squeezed = b.pair(b.add("Relu", layer(mean, 8, channels)), 0.03, 0)
        gate = b.pair(b.add("HardSigmoid", layer(squeezed, channels, 8)), 1 / 255, 0)
        wide = b.pair(b.add("Mul", wide, gate), 0.03, 0)
    if is_flat:
        flat = b.add(
            "Reshape", b.add("GlobalAveragePool", wide), b.constant(np.array([1, channels], np.int64))
        )
        weight = b.weight(rng.integers(-64, 65, (channels, 5)), rng.uniform(0.001, 0.02, 5), axis=1)
        return b.model({"x": (1, 8, 9, 8)}, b.pair(b.add("Gemm", b.pair(flat, 0.03, 0), weight), 0.05, 128))
    return b.model({"x": (1, 8, 9, 8)}, b.pair(layer(wide, 8, channels), 0.05, 128) if reads_all else wide)


def groups(model: onnx.ModelProto) -> list[int]:
    return [int(attribute(node, "group", 1)) for node in Graph(model).nodes if node.op_type == "Conv"]


@given(
    seed=st.integers(0, 10_000),
    channels=st.integers(17, 71),
    kernel=st.sampled_from([3, 5]),
    has_gate=st.booleans(),
    is_flat=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_whole_blocks_change_no_bit(
    seed: int, channels: int, kernel: int, has_gate: bool, is_flat: bool
) -> None:
    model = block_model(seed, channels=channels, kernel=kernel, has_gate=has_gate, is_flat=is_flat)
    lowered, changed = lower(model, BlockChannels(value_ns=0.0))
    assert changed == (["block-channels"] if channels % 16 else [])
    assert groups(lowered)[1] == -(-channels // 16) * 16
    feeds = {"x": np.random.default_rng(seed).standard_normal((1, 8, 9, 8)).astype(np.float32)}
    for optimized in (False, True):
        before = run(model, feeds, optimized=optimized)
        np.testing.assert_array_equal(before, run(lowered, feeds, optimized=optimized))


def test_channels_that_are_missing_are_copies_read_with_zeros() -> None:
    graph = Graph(lower(block_model(), BlockChannels())[0])
    first, depthwise, last = (
        graph.constants[graph.producer[node.input[1]].input[0]]
        for node in graph.nodes
        if node.op_type == "Conv"
    )
    np.testing.assert_array_equal(first[24:], np.repeat(first[23:24], 8, 0))
    np.testing.assert_array_equal(depthwise[24:], np.repeat(depthwise[23:24], 8, 0))
    assert last.shape == (8, 32, 1, 1)
    assert not last[:, 24:].any()


@pytest.mark.parametrize(
    "model",
    [
        block_model(channels=32),
        block_model(channels=18),
        block_model(reads_all=False),
        block_model(kernel=1),
    ],
    ids=["aligned", "more copies than it saves", "the graph's output", "one product for each value"],
)
def test_what_gains_nothing_stays(model: onnx.ModelProto) -> None:
    assert lower(model, BlockChannels())[1] == []


def test_channels_of_which_other_operations_want_a_number_stay() -> None:
    b = Builder()
    rng = np.random.default_rng(0)
    wide = b.pair("x", 0.02, 114)
    weight = b.weight(rng.integers(-64, 65, (24, 1, 3, 3)), rng.uniform(0.001, 0.02, 24))
    mapped = b.pair(b.add("Conv", wide, weight, group=24, pads=[1] * 4), 0.05, 128)
    shuffled = b.add("Reshape", mapped, b.constant(np.array([1, 2, 12, 9, 8], np.int64)))
    model = b.model({"x": (1, 24, 9, 8)}, shuffled)
    assert lower(model, BlockChannels(value_ns=0.0))[1] == []


@pytest.mark.parametrize("seed", [0, 3, 21, 32])
def test_any_channels_of_random_networks_can_be_widened(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from random_networks import export, random_network

    from edgeattn.export.from_onnx import load_float_onnx
    from edgeattn.export.qdq import emit_qdq
    from edgeattn.quant.config import PtqConfig
    from edgeattn.quant.ptq import make_plan

    rng = np.random.default_rng(seed)
    images = [rng.standard_normal((1, 3, 32, 32)).astype(np.float32) for _ in range(4)]
    path = tmp_path / "network.onnx"
    path.write_bytes(export(random_network(seed, torch.from_numpy(np.concatenate(images)))))
    canonical = load_float_onnx(path)
    config = PtqConfig(nncf=False, importance=False, tuning_steps=0, rounding=False)
    model = emit_qdq(canonical, make_plan(canonical, images, config), "u8")
    # Around any convolution, to a number that nothing has.
    monkeypatch.setattr(block_channels, "_is_slow", lambda graph, node, block: node.op_type == "Conv")
    lowered, changed = lower(model, BlockChannels(block=23, value_ns=0.0))
    assert changed == ["block-channels"]
    before, after = open_session(model), open_session(lowered)
    for image in images:
        np.testing.assert_array_equal(
            before.run(None, {"image": image})[0], after.run(None, {"image": image})[0]
        )


def test_targets_whose_kernels_want_blocks_get_them() -> None:
    having = {
        target for target, passes in PASSES.items() if "block-channels" in [item.name for item in passes]
    }
    assert having == {"ort-cpu", "ort-portable"}
