"""Small networks with lively batch norms, for tests of the exporter."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from short_networks import shortened
from torch import nn

from edgeattn.models import create_model, insert_attention, to_edge_form

SIZE = 32
SHAPE = (1, 3, SIZE, SIZE)


def make_edge(
    kind: str,
    arch: str = "mobilenet_v2",
    seed: int = 0,
    *,
    materialize: bool = False,
    form: str | None = None,
) -> nn.Module:
    """Return an edge form whose batch norms and gates are not at their start."""
    torch.manual_seed(seed)
    model = shortened(create_model(arch, num_classes=10, width=0.1 if arch == "mobilenet_v2" else 1.0))
    if kind != "none":
        model = insert_attention(model, kind, identity=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return to_edge_form(model.eval(), SIZE, SIZE, form=form, materialize=materialize).eval()


def make_images(count: int, seed: int = 0) -> list[NDArray[np.float32]]:
    """Return normalized inputs (1, 3, SIZE, SIZE)."""
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(SHAPE).astype(np.float32) for _ in range(count)]
