"""Tiny quantized networks with one gate, for tests of lowering, linting and building."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn

from edgeattn.attention import create_attention
from edgeattn.export.float_onnx import export_float
from edgeattn.export.qdq import emit_qdq
from edgeattn.lower import preferred_forms
from edgeattn.models import to_edge_form
from edgeattn.quant.config import GatePolicy, PtqConfig
from edgeattn.quant.gates import gate_regions
from edgeattn.quant.plan import Profile, QuantPlan
from edgeattn.quant.ptq import make_plan

PLAIN = PtqConfig(
    nncf=False,
    range_estimator="minmax",
    equalization=False,
    importance=False,
    tuning_steps=0,
    rounding=False,
)
CHANNELS, SIZE = 32, 16


def pictures(count: int, seed: int = 0) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    return [random.standard_normal((1, 3, SIZE, SIZE)).astype(np.float32) for _ in range(count)]


class _Network(nn.Module):
    """A stem, a depthwise convolution, a gate, a projection and a classifier."""

    def __init__(self, kind: str, options: dict[str, Any]) -> None:
        super().__init__()
        gate = nn.Identity() if kind == "none" else create_attention(kind, CHANNELS, **options)
        self.features = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, 1, 1),
            nn.ReLU6(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1, groups=CHANNELS),
            nn.ReLU6(),
            gate,
            nn.Conv2d(CHANNELS, 16, 1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return result


@functools.cache
def planned(
    kind: str,
    form: str | None = None,
    policy: GatePolicy = "int8",
    target: str = "tensorrt-rtx",
    **options: Any,
) -> tuple[ModelProto, QuantPlan]:
    """Return a float graph in an edge form (the target's by default), and its plan from images of noise."""
    torch.manual_seed(0)
    model = _Network(kind, options).eval()
    for name, parameter in model.named_parameters():
        if name.startswith("features.4") and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.5)
    forms = {kind: form or preferred_forms(target).get(kind)} if kind != "none" else {}
    chosen = {key: value for key, value in forms.items() if value}
    edge = to_edge_form(model, SIZE, SIZE, form=chosen or None, materialize=True).eval()
    graph = export_float(edge, (1, 3, SIZE, SIZE)).model
    return graph, make_plan(graph, pictures(8), PLAIN, gate_regions(edge, policy))


def quantized(kind: str, profile: Profile = "s8", **options: Any) -> ModelProto:
    """Return the QDQ graph of `planned`."""
    return emit_qdq(*planned(kind, **options), profile)
