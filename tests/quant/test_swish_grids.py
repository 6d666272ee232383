"""What hard swishes read is quantized from -3 on, in steps of which 3 is a whole number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from quant_networks import Builder, pictures

from edgeattn.onnx_graph import Graph
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import ActivationRange, QuantPlan
from edgeattn.quant.ptq import make_plan
from edgeattn.quant.swish_grids import count_swish_grids, with_swish_grids

QUICK = PtqConfig(nncf=False, tuning_steps=0, headroom="none", rounding=False, swish_grids=False)


def swish_network(*, shared: bool = False) -> ModelProto:
    """Two convolutions with hard swishes; with `shared`, a ReLU reads the first one's result, too."""
    b = Builder(0)
    first = b.conv("input", "first", 3, 8, kernel=3)
    swish = b.node("HardSwish", [first], "swish")
    if shared:
        swish = b.node("Add", [swish, b.node("Relu", [first], "relu")], "sum")
    second = b.conv(swish, "second", 8, 8)
    last = b.node("HardSwish", [second], "last")
    pooled = b.node("GlobalAveragePool", [last], "pooled")
    return b.model(b.node("Flatten", [pooled], "logits"), (1, 8))


def plan_with(**ranges: tuple[float, float]) -> QuantPlan:
    plan = make_plan(swish_network(), pictures(8), QUICK)
    changed = {
        name: plan.activations[name].model_copy(update={"low": low, "high": high, "limit": max(-low, high)})
        for name, (low, high) in ranges.items()
    }
    return plan.model_copy(update={"activations": {**plan.activations, **changed}})


def moved(item: tuple[float, float]) -> ActivationRange:
    model = swish_network()
    found = with_swish_grids(plan_with(first=item), Graph(model), place_quantizers(model))
    return found.activations["first"]


@given(low=st.floats(-30, -2.9), high=st.floats(0.1, 60))
@settings(max_examples=40, deadline=None)
def test_three_is_a_whole_number_of_steps_and_minus_three_the_lowest_integer(low: float, high: float) -> None:
    item = moved((low, high))
    params = item.params("u8")
    assert params.zero_point * params.scale == pytest.approx(3, rel=2.0**-22)
    assert params.low == pytest.approx(-3, rel=2.0**-22)
    # One step of rounding the number of steps, of at least eleven.
    assert item.high == pytest.approx(high, abs=(high + 3) / 20)
    again = with_swish_grids(
        plan_with(first=(item.low, item.high)), Graph(swish_network()), place_quantizers(swish_network())
    )
    assert again.activations["first"].high == pytest.approx(item.high)


def test_profile_s8_keeps_its_range() -> None:
    """Room above what calibration saw may come from below: without it an INT8 network lost up to 6 dB on other images."""
    assert moved((-20.0, 5.0)).limit == 20.0


@pytest.mark.parametrize(
    "item", [(-1.0, 4.0), (-3.0, 300.0)], ids=["ends far above -3", "has few steps below 0"]
)
def test_ranges_that_would_lose_by_it_stay(item: tuple[float, float]) -> None:
    assert (moved(item).low, moved(item).high) == item


def test_a_tensor_that_others_read_as_well_stays() -> None:
    model = swish_network(shared=True)
    graph, place = Graph(model), place_quantizers(model)
    plan = make_plan(model, pictures(8), QUICK)
    found = with_swish_grids(plan, graph, place)
    assert found.activations["first"] == plan.activations["first"]
    assert count_swish_grids(found, graph, place) <= 1


def test_calibration_chooses_such_grids_and_says_so() -> None:
    model = swish_network()
    graph, place = Graph(model), place_quantizers(model)
    images = [np.asarray(4 * image, np.float32) for image in pictures(8)]
    plan = make_plan(model, images, QUICK.model_copy(update={"swish_grids": True}))
    assert count_swish_grids(plan, graph, place) == 2
    assert [step.step for step in plan.ladder if step.kept][-1] == "grids of hard swishes: 2 tensors"
    without = make_plan(model, images, QUICK)
    assert count_swish_grids(without, graph, place) == 0
