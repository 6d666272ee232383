"""A plan's roundings move weights to the other side of the middle, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant_networks import inverted_residual, pictures

from edgeattn.errors import ModelError
from edgeattn.onnx_graph import Graph
from edgeattn.quant.apply import apply_plan_constants
from edgeattn.quant.config import RANGES_ONLY
from edgeattn.quant.plan import QuantPlan, quantize_weight
from edgeattn.quant.ptq import make_plan
from edgeattn.quant.rounding import pack_rounding, second_nearest


@given(st.integers(0, 10_000))
def test_the_second_nearest_integer_is_the_other_neighbour(seed: int) -> None:
    random = np.random.default_rng(seed)
    scales = random.uniform(1e-3, 1e-1, 4)
    weight = random.normal(size=(4, 5)) * scales[:, None] * 50
    first, second = quantize_weight(weight, scales).astype(int), second_nearest(weight, scales).astype(int)
    assert np.abs(first - second).max() == 1
    steps = weight / scales[:, None]
    inside = np.abs(steps) < 126
    assert (np.minimum(first, second) <= steps)[inside].all()
    assert (np.maximum(first, second) >= steps)[inside].all()
    assert np.abs(np.stack([first, second])).max() <= 127


def test_beyond_the_last_integer_there_is_no_second_one() -> None:
    weight = np.array([[127.4, 128.2, -127.4, 126.8]])
    assert second_nearest(weight, np.ones(1)).tolist() == [[127, 127, -127, 126]]


@pytest.fixture(scope="module")
def planned() -> tuple[Graph, QuantPlan]:
    model = inverted_residual()
    return Graph(model), make_plan(model, pictures(8), RANGES_ONLY)


@pytest.mark.parametrize("name", ["project.weight", "depthwise.weight", "head.weight"])
def test_weights_round_as_the_plan_says_and_stay_near(planned: tuple[Graph, QuantPlan], name: str) -> None:
    graph, plan = planned
    weight, scales = graph.constants[name], np.asarray(plan.weights[name], np.float32)
    mask = np.random.default_rng(3).random(weight.shape) < 0.3
    rounded = plan.model_copy(update={"roundings": {name: pack_rounding(mask)}})
    adjusted = Graph(graph.to_model())
    apply_plan_constants(adjusted, rounded, "u8")
    wanted = np.where(mask, second_nearest(weight, scales), quantize_weight(weight, scales))
    np.testing.assert_array_equal(quantize_weight(adjusted.constants[name], scales), wanted)
    moved = np.abs(adjusted.constants[name] - weight) / scales.reshape((-1,) + (1,) * (weight.ndim - 1))
    assert not moved[~mask].any()
    assert moved.max() <= 0.52
    assert QuantPlan.model_validate_json(rounded.model_dump_json()) == rounded


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("missing.weight", pack_rounding(np.ones(8, bool))),
        ("project.weight", pack_rounding(np.ones(8, bool))),
        ("project.weight", "no base64"),
        ("last.bias", pack_rounding(np.ones(16, bool))),
    ],
)
def test_roundings_of_another_graph_are_refused(
    planned: tuple[Graph, QuantPlan], name: str, text: str
) -> None:
    graph, plan = planned
    with pytest.raises(ModelError, match=f"weight '{name}'.*belongs to one graph"):
        apply_plan_constants(
            Graph(graph.to_model()), plan.model_copy(update={"roundings": {name: text}}), "u8"
        )
