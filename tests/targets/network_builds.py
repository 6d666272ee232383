"""Whole networks in INT8 with random weights, for builds whose kernels are counted."""

from __future__ import annotations

import numpy as np
import torch
from attention_networks import PLAIN
from onnx import ModelProto
from torch import nn

from edgeattn.export.float_onnx import export_float
from edgeattn.export.qdq import emit_qdq
from edgeattn.models import create_model, insert_attention, to_edge_form
from edgeattn.quant.gates import gate_regions
from edgeattn.quant.ptq import make_plan


def whole_network(arch: str, kind: str, form: str | None, size: int = 224) -> ModelProto:
    """Return a QDQ graph, profile s8, whose values neither vanish nor grow from layer to layer."""
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
    return emit_qdq(graph, make_plan(graph, [image], PLAIN, gate_regions(edge, "int8")), "s8")
