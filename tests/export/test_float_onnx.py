"""The float export computes what the module computes, under the module's own names."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from attention_kinds import RECIPE_KINDS
from export_networks import SHAPE, make_edge, make_images
from torch import nn

from edgeattn.errors import ModelError
from edgeattn.export.float_onnx import export_float, operation_names


def _run(model: object, image: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
    return session.run(None, {"input": image})[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["none", *RECIPE_KINDS])
def test_graph_computes_what_the_module_computes(kind: str) -> None:
    edge = make_edge(kind)
    export = export_float(edge, SHAPE)
    for image in make_images(2):
        with torch.no_grad():
            expected = edge(torch.from_numpy(image)).numpy()
        assert np.abs(_run(export.model, image) - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("kind", ["none", "coord", "triplet"])
def test_batch_norms_are_folded_and_weights_are_constants(kind: str) -> None:
    export = export_float(make_edge(kind), SHAPE)
    operators = {node.op_type for node in export.model.graph.node}
    assert not operators & {"BatchNormalization", "Identity", "Constant", "Mark", "Shape", "Gather"}
    constants = {item.name for item in export.model.graph.initializer}
    for node in export.model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert set(node.input[1:]) <= constants


def test_tensors_carry_module_paths() -> None:
    edge = make_edge("coord")
    paths = {path.replace(".", "/") for path, _ in edge.named_modules()}
    for node in export_float(edge, SHAPE).model.graph.node:
        if node.output[0] != "logits":
            assert "/".join(node.output[0].split("/")[:-2]) in paths


def test_every_convolution_has_an_origin_with_its_folding_ratio() -> None:
    edge = make_edge("none")
    export = export_float(edge, SHAPE)
    for name, origin in export.weights.items():
        weight = edge.state_dict()[name]
        folded = next(item for item in export.model.graph.initializer if item.name == name)
        ratio = origin.ratio.reshape((-1,) + (1,) * (weight.ndim - 1))
        assert np.allclose(onnx_array(folded), weight.numpy() * ratio, atol=1e-6)


def test_every_origin_is_an_operation_that_a_hook_reaches() -> None:
    edge = make_edge("coord")
    export = export_float(edge, SHAPE)
    _, operations = operation_names(edge, SHAPE)
    assert {origin.operation for origin in export.weights.values()} <= set(operations)
    assert len(export.weights) == sum(node.op_type in ("Conv", "Gemm") for node in export.model.graph.node)


def onnx_array(item: object) -> np.ndarray:  # type: ignore[type-arg]
    from onnx import numpy_helper

    return numpy_helper.to_array(item)  # type: ignore[arg-type]


def test_exporting_leaves_the_module_as_it_was() -> None:
    edge = make_edge("coord")
    edge.train()
    before = {name: value.clone() for name, value in edge.state_dict().items()}
    export_float(edge, SHAPE)
    assert edge.training
    for name, value in edge.state_dict().items():
        assert torch.equal(before[name], value)


def test_a_shape_that_does_not_fit_is_a_model_error() -> None:
    with pytest.raises(ModelError, match=r"cannot be exported|cannot run"):
        export_float(make_edge("none"), (1, 4, 32, 32))


def test_a_bare_sequential_is_refused_with_what_to_do() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ModelError, match="a module that holds it"):
        export_float(layers, SHAPE)


def test_a_module_that_holds_a_sequential_is_exported() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layers(image)
            return result

    assert [node.op_type for node in export_float(Network(), SHAPE).model.graph.node][:2] == ["Conv", "Clip"]
