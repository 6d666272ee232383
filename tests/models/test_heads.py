"""Segmentation heads around attention."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from edgeattn.errors import RecipeError
from edgeattn.export.float_onnx import export_float
from edgeattn.models import to_edge_form
from edgeattn.models.example import wake
from edgeattn.models.heads import segmentation_example

# All three take the same way through the package; one of them is enough for every day.
KINDS = (
    "cca",
    pytest.param("danet", marks=pytest.mark.slow),
    pytest.param("psa", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("kind", KINDS)
def test_network_with_the_head_exports_to_the_same_function(kind: str) -> None:
    torch.manual_seed(0)
    example = segmentation_example(kind)
    wake(example.network)
    network = example.network.eval()
    x = torch.randn(example.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(x).numpy()
    assert expected.shape == (1, 5, 4, 4)
    edge = to_edge_form(network, *example.input_shape[2:], materialize=True)
    model = export_float(edge, example.input_shape).model
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input": x.numpy()})
    assert np.abs(got - expected).max() < 1e-4 * max(1.0, float(np.abs(expected).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_head_learns_which_half_is_bright(kind: str) -> None:
    torch.manual_seed(0)
    network = segmentation_example(kind, classes=2).network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    images, target = torch.randn(8, 3, 64, 64) * 0.1, torch.zeros(8, 4, 4, dtype=torch.long)
    for number in range(8):
        half = slice(0, 32) if number % 2 else slice(32, 64)
        images[number, :, half] += 1.0
        target[number, half.start // 16 : half.stop // 16] = 1
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(network(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_unknown_options_and_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match="has no option 'heads'"):
        segmentation_example("cca", heads=2)
    with pytest.raises(RecipeError, match="does not go from a map to a map"):
        segmentation_example("stn")
