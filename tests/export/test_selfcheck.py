"""The exporter's check runs images through torch together, where the network lets it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeattn.export import selfcheck
from edgeattn.export.fake_quant import FakeQuantized, ObservedQuantizer
from edgeattn.quant.plan import QuantParams


class _Network(nn.Module):
    """A quantized map and what is made of it, with the batch kept, fixed at one, or behind another axis."""

    def __init__(self, quantizer: nn.Module, kind: str) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.kind = kind
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        if self.kind == "tokens first":
            return self.quantizer(x.flatten(2).permute(2, 0, 1)).mean(0)
        y: Tensor = self.quantizer(x)
        return y.reshape(1, 3, -1).mean(2) if self.kind == "one" else y.mean((2, 3))


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        ("batches", [1, 8, 2]),
        ("one", [1, 8, *[1] * 8, 2, 1, 1]),
        ("tokens first", [1, 8, *[1] * 8, 2, 1, 1]),
    ],
)
def test_each_image_gets_its_own_integers(kind: str, calls: list[int]) -> None:
    quantizer = ObservedQuantizer(QuantParams(scale=0.02, zero_point=3, quant_min=-128, quant_max=127))
    network = _Network(quantizer, kind)
    rng = np.random.default_rng(0)
    images: list[NDArray[np.float32]] = [rng.standard_normal((1, 3, 2, 2), np.float32) for _ in range(11)]
    found = selfcheck._torch_integers(FakeQuantized(network, {"map": quantizer}, {}), images)
    assert network.calls == calls
    for image, tensors in zip(images, found, strict=True):
        expected = network(torch.from_numpy(image))
        np.testing.assert_array_equal(tensors["map"], quantizer.integers)
        np.testing.assert_allclose(tensors[""], expected.numpy(), rtol=1e-6)
