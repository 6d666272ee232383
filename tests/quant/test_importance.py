"""Weights of errors follow from how much the network's answer depends on a value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quant_networks import Builder, inverted_residual, pictures

from edgeattn.onnx_graph import Graph
from edgeattn.quant.calibrate import estimate_range
from edgeattn.quant.importance import _class, weighted_statistics


def test_values_behind_which_everything_saturates_weigh_nothing() -> None:
    b = Builder()
    b.constant("w", np.eye(3).reshape(3, 3, 1, 1))
    b.constant("b", np.zeros(3))
    x = b.relu6(b.node("Conv", ["input", "w", "b"], "conv", kernel_shape=[1, 1]), "act")
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x], "pool")], "flat")
    b.constant("head", np.asarray([[1.0, -1], [2, 0], [0, 1]]))
    graph = Graph(b.model(b.node("Gemm", [x, "head"], "logits"), (1, 2)))
    images = [image * 2 for image in pictures(8)]
    for image in images:
        image[0, 0, 0, 0] = 60.0  # ten times what the clip lets through
    stats = weighted_statistics(graph, ["input"], images)["input"]
    assert stats.high == 60.0
    values, counts = stats.occupied()
    assert counts.sum() > 0
    assert values.min() > -0.1
    assert values.max() < 6.1
    assert estimate_range(stats, "mse")[1] < 12


def test_tensors_that_the_answer_does_not_depend_on_are_left_out() -> None:
    model = inverted_residual()
    for item in model.graph.initializer:
        if item.name == "project.weight":
            item.raw_data = bytes(len(item.raw_data))
    found = weighted_statistics(Graph(model), ["input", "depthwise_act", "last_act"], pictures(4))
    assert set(found) == {"input", "last_act"}


def test_drawn_gradients_have_the_covariance_of_the_softmax() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 0.5]])
    draws = _class(logits.repeat(200_000, 1), torch.Generator().manual_seed(0)).double()
    p = logits.softmax(1)[0].double()
    expected = torch.diag(p) - torch.outer(p, p)
    assert torch.allclose(draws.T @ draws / len(draws), expected, atol=3e-3)
    assert draws.sum(1).abs().max() < 1e-5


@pytest.mark.parametrize("count", [1, 9])
def test_every_value_is_counted_once(count: int) -> None:
    model, images = inverted_residual(), pictures(count)
    first, second = (weighted_statistics(Graph(model), ["sum"], images)["sum"] for _ in range(2))
    np.testing.assert_array_equal(first.histogram, second.histogram)
    assert first.low <= 0 <= first.high
