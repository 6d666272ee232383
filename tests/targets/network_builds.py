"""Whole networks in INT8 with random weights, for builds whose kernels are counted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from onnx import ModelProto
from torch import nn

from edgeattn.attention.base import EdgeForm
from edgeattn.export.float_onnx import export_float
from edgeattn.export.qdq import emit_qdq
from edgeattn.models import create_model, insert_attention, to_edge_form
from edgeattn.quant.config import RANGES_ONLY
from edgeattn.quant.gates import gate_regions
from edgeattn.quant.ptq import make_plan


class Built(NamedTuple):
    """A QDQ graph, profile s8, and how many attention modules are in it."""

    model: ModelProto
    gates: int


def whole_network(arch: str, kind: str, form: str | None, size: int = 224) -> Built:
    """Return a network whose values neither vanish nor grow from layer to layer."""
    torch.manual_seed(0)
    model = create_model(arch, num_classes=1000)
    if kind != "none":
        model = insert_attention(model, kind, identity=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    edge = to_edge_form(model.eval(), size, size, form={kind: form} if form else None, materialize=True)
    image = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    graph = export_float(edge.eval(), image.shape).model
    gates = sum(isinstance(module, EdgeForm) for module in edge.modules())
    return Built(
        emit_qdq(graph, make_plan(graph, [image], RANGES_ONLY, gate_regions(edge, "int8")), "s8"), gates
    )
