"""What precedes a network, trained on scikit-learn's handwritten digits and quantized."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits

from edgeattn.attention.ram import RecurrentAttention, ram_loss
from edgeattn.attention.stn import SpatialTransformer
from edgeattn.export.float_onnx import export_float
from edgeattn.export.qdq import emit_qdq
from edgeattn.models import to_edge_form
from edgeattn.models.digits_front import GlimpseClassifier, TransformedClassifier
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.ptq import make_plan

pytestmark = pytest.mark.slow
TRAINED = 1438


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All 1,797 images as (N, 1, 16, 16) in [-1, 1], shuffled, and their classes."""
    found: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    images = torch.from_numpy(found.images[order]).float().unsqueeze(1) / 8 - 1
    images = torch.nn.functional.interpolate(images, (16, 16), mode="bilinear", align_corners=False)
    return images, torch.from_numpy(found.target[order])


def train(network: torch.nn.Module, loss_of: Any, epochs: int, rate: float) -> float:
    """Train on the first 1,438 digits and return the accuracy on the others."""
    images, labels = digits()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * (TRAINED // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(TRAINED, generator=generator)
        for start in range(0, TRAINED - 31, 32):
            batch = order[start : start + 32]
            loss = loss_of(images[batch], labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return float((network.eval()(images[TRAINED:]).argmax(1) == labels[TRAINED:]).float().mean())


def int8_accuracy(network: torch.nn.Module) -> float:
    """Quantize with ranges from 64 training digits and return ONNX Runtime's accuracy on those not trained on."""
    images, labels = digits()
    shape = (1, 1, 16, 16)
    floating = export_float(to_edge_form(network, 16, 16, materialize=True), shape).model
    config = PtqConfig(nncf=False, importance=False, tuning_steps=0)
    plan = make_plan(floating, [image[None].numpy() for image in images[:64]], config)
    model = emit_qdq(floating, plan, "u8")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    right = [
        int(session.run(None, {name: image[None].numpy()})[0].argmax()) == int(label)
        for image, label in zip(images[TRAINED:], labels[TRAINED:], strict=True)
    ]
    return float(np.mean(right))


def test_spatial_transformer_learns_the_digits() -> None:
    torch.manual_seed(0)
    network = TransformedClassifier(SpatialTransformer(1, width=8, grid=2, hidden=16), channels=1, width=16)
    accuracy = train(
        network, lambda x, y: torch.nn.functional.cross_entropy(network(x), y), epochs=10, rate=5e-3
    )
    int8 = int8_accuracy(network)
    assert accuracy > 0.95
    assert int8 > accuracy - 0.03


def test_recurrent_attention_learns_the_digits() -> None:
    """Four glimpses of 6 x 6 pixels, and of twice that at half the sharpness, of images of 16 x 16."""
    torch.manual_seed(0)
    front = RecurrentAttention(1, glimpse=6, scales=2, steps=4, hidden=96)
    network = GlimpseClassifier(front)
    draws = torch.Generator().manual_seed(0)
    accuracy = train(network, lambda x, y: ram_loss(front.explore(x, draws), y), epochs=15, rate=3e-3)
    int8 = int8_accuracy(network)
    assert accuracy > 0.9
    assert int8 > accuracy - 0.03
