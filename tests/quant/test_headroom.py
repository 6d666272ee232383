"""Weight scales leave room where x86 kernels without VNNI add products in 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from quant_networks import Builder

from edgeattn.export.qdq import emit_qdq
from edgeattn.onnx_graph import Graph
from edgeattn.quant.channel_order import order_channels
from edgeattn.quant.config import RANGES_ONLY
from edgeattn.quant.headroom import PAIR_LIMIT, leave_headroom, saturating_product
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import QuantPlan, quantize_weight
from edgeattn.quant.ptq import make_plan


def _loud(kernel: int = 1, channels: int = 8, *, sign: float = 1.0) -> ModelProto:
    """A layer whose weights are large and of one sign: pairs of products do not fit 16 bits."""
    builder = Builder(3)
    builder.conv("input", "first", channels, 6, kernel=kernel)
    weight = np.abs(builder.constants["first.weight"])
    builder.constants["first.weight"] = sign * (0.7 * weight.max() + 0.3 * weight).astype(np.float32)
    builder.node("Relu" if sign > 0 else "Neg", ["first"], "activated")
    builder.conv("activated", "last", 6, 4)
    return builder.model("last", (1, 4, 8, 8), channels)


def _bright(channels: int = 8, count: int = 12) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(5)
    return [random.uniform(0, 1, (1, channels, 8, 8)).astype(np.float32) for _ in range(count)]


def _planned(model: ModelProto, images: list[NDArray[np.float32]]) -> QuantPlan:
    return make_plan(model, images, RANGES_ONLY)


def _headroom(model: ModelProto, plan: QuantPlan, images: list[NDArray[np.float32]]) -> Any:
    return leave_headroom(plan, Graph(model), place_quantizers(model), images)


def _optimized(model: ModelProto, images: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"input": image})[0] for image in images])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 5), st.randoms(use_true_random=False))
def test_sums_saturate_in_pairs_as_the_instruction_does(rows: int, inner: int, outs: int, seed: Any) -> None:
    random = np.random.default_rng(seed.randrange(1 << 30))
    columns = random.integers(0, 256, (rows, inner))
    weights = random.integers(-127, 128, (outs, inner))
    expected = np.zeros((rows, outs), np.int64)
    for row in range(rows):
        for out in range(outs):
            for first in range(0, inner, 2):
                products = [
                    int(columns[row, k]) * int(weights[out, k]) for k in range(first, min(first + 2, inner))
                ]
                expected[row, out] += min(max(sum(products), -32768), 32767)
    got = saturating_product(torch.tensor(columns).float(), torch.tensor(weights).float())
    np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize(("kernel", "channels"), [(1, 8), (1, 7), (3, 3), (3, 4)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_loud_layers_get_larger_scales_and_pairs_that_fit(kernel: int, channels: int, sign: float) -> None:
    model, images = _loud(kernel, channels, sign=sign), _bright(channels)
    plan = _planned(model, images)
    found = _headroom(model, plan, images)
    assert found.widened >= 6
    weight = Graph(model).constants["first.weight"]
    before, after = (
        quantize_weight(weight, np.asarray(item.weights["first.weight"])).astype(int)
        for item in (plan, found.plan)
    )
    # The loudest pair that pixels of up to 255 can make, whatever the kernel's order.
    assert 2 * 255 * np.abs(before).max() > PAIR_LIMIT
    assert np.abs(after).max() < np.abs(before).max()
    assert 2 * 255 * np.abs(after).mean() < PAIR_LIMIT * 1.05


def test_quiet_layers_keep_every_bit() -> None:
    builder = Builder(3)
    builder.conv("input", "first", 8, 6)
    weight = builder.constants["first.weight"]
    weight[:, 1::2] = 0.0  # every pair has one product only
    builder.node("Relu", ["first"], "activated")
    builder.conv("activated", "last", 6, 4, group=2)
    model = builder.model("last", (1, 4, 8, 8), 8)
    plan = _planned(model, _bright())
    found = _headroom(model, plan, _bright())
    assert found.widened == 0
    assert found.plan == plan


def test_depthwise_layers_are_left_alone() -> None:
    builder = Builder(3)
    builder.conv("input", "first", 8, 8, kernel=3, group=8)
    builder.constants["first.weight"] = np.abs(builder.constants["first.weight"]) + 1
    builder.node("Relu", ["first"], "activated")
    model = builder.model("activated", (1, 8, 8, 8), 8)
    plan = _planned(model, _bright())
    assert _headroom(model, plan, _bright()).channels == 0


def test_scales_lie_where_rounding_and_saturation_together_cost_least() -> None:
    model, images = _loud(), _bright()
    plan = _planned(model, images)
    found = _headroom(model, plan, images).plan
    graph = Graph(model)
    params = plan.activations["input"].params("u8")
    pixels = np.concatenate(images).transpose(0, 2, 3, 1).reshape(-1, 8)
    integers = torch.from_numpy(np.clip(np.rint(pixels / params.scale) + params.zero_point, 0, 255)).float()
    rows = graph.constants["first.weight"].reshape(6, 8).copy()
    exact = (integers - params.zero_point) @ torch.from_numpy(rows).T

    def error(scales: NDArray[np.float64]) -> float:
        weights = torch.from_numpy(quantize_weight(rows, scales).astype(np.float32))
        sums = saturating_product(integers, weights) - params.zero_point * weights.sum(1)
        return float((sums * torch.from_numpy(scales.astype(np.float32)) - exact).square().mean())

    chosen = np.asarray(found.weights["first.weight"])
    seven_bits = np.asarray(plan.weights["first.weight"]) * 2
    assert error(chosen) < 0.02 * error(np.asarray(plan.weights["first.weight"]))
    assert error(chosen) < error(seven_bits)


def test_the_engine_on_this_cpu_computes_what_was_planned() -> None:
    """With VNNI it does so in any case; without, only because of the headroom."""
    model, images = _loud(), _bright()
    found = _headroom(model, _planned(model, images), images).plan
    reference, quantized = _optimized(model, images), _optimized(emit_qdq(model, found, "u8"), images)
    error = float(np.square(quantized - reference).mean() / np.square(reference).mean())
    assert 10 * np.log10(1 / error) > 30


def test_planning_leaves_headroom_and_says_what_it_costs() -> None:
    model, images = _loud(), _bright()
    plan = make_plan(model, images, RANGES_ONLY.model_copy(update={"headroom": "measured"}))
    assert plan.ladder[-1].step.startswith("headroom: ")
    assert plan.ladder[-1].kept
    ordered = order_channels(_planned(model, images), Graph(model), place_quantizers(model))
    assert plan.weights == _headroom(model, ordered, images).plan.weights


def test_proven_headroom_holds_for_every_image() -> None:
    model, images = _loud(), _bright(count=2)
    dark = [image * 0.01 for image in images]
    plan = _planned(model, images)
    place = place_quantizers(model)
    # Dark images saturate nothing, so measuring changes nothing; a proof does not look at images.
    assert leave_headroom(plan, Graph(model), place, dark).widened == 0
    proven = leave_headroom(plan, Graph(model), place, dark, proven=True).plan
    integers = quantize_weight(
        Graph(model).constants["first.weight"], np.asarray(proven.weights["first.weight"])
    ).reshape(6, 4, 2)
    assert 255 * np.abs(integers.astype(int).sum(axis=2)).max() <= PAIR_LIMIT
