"""A torch network that reads pixels computes what it did, is trained, and gives its weights back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from export_networks import SHAPE, SIZE, make_edge, make_images
from torch import nn

from edgeattn.data.preprocess import normalize_pixels
from edgeattn.data.spec import Preprocess
from edgeattn.export.fake_quant import attach_fake_quant, attach_trainable, read_back, write_constants
from edgeattn.export.float_network import float_network
from edgeattn.export.float_onnx import export_float
from edgeattn.export.pixel_module import PixelConv2d
from edgeattn.export.qdq import emit_qdq
from edgeattn.export.selfcheck import check_export
from edgeattn.onnx_graph import Graph
from edgeattn.quant.apply import apply_plan_constants
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.pixel_input import pixel_model
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import PROFILES
from edgeattn.quant.ptq import fit_to_kernels, make_plan

QUICK = PtqConfig(nncf=False, tuning_steps=0, importance=False)


def photographs(count: int = 12) -> list[np.ndarray]:
    shown = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)
    return [image[None] for image in normalize_pixels(shown, Preprocess(size=SIZE))]


class Network(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(images)
        return found


def outputs(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module.eval()(torch.from_numpy(np.concatenate(photographs(4))))
    return found


@pytest.mark.parametrize("kind", ["none", "coord"])
def test_torch_and_onnx_read_pixels_alike_and_compute_what_they_did(kind: str) -> None:
    edge = make_edge(kind)
    export = export_float(edge, SHAPE)
    network = float_network(edge, export, photographs(), PtqConfig())
    assert network.plain_model is export.model
    torch.testing.assert_close(outputs(network.module), outputs(edge), rtol=1e-4, atol=1e-4)
    theirs = pixel_model(export.model, photographs())
    assert theirs is not None
    ours, theirs_graph = Graph(network.export.model), Graph(theirs)
    assert [node.op_type for node in ours.nodes] == [node.op_type for node in theirs_graph.nodes]
    first, second = (
        [graph.constants[name] for name in next(n for n in graph.nodes if n.op_type == "Conv").input[1:]]
        for graph in (ours, theirs_graph)
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_other_images_and_other_wishes_leave_the_network_as_it_is() -> None:
    edge = make_edge("none")
    export = export_float(edge, SHAPE)
    for network in (
        float_network(edge, export, make_images(8), PtqConfig()),
        float_network(edge, export, photographs(), PtqConfig(pixels=False)),
    ):
        assert network.module is edge
        assert network.plain_model is None
        assert network.with_pixels(network.without_pixels(edge)) is edge


@pytest.mark.parametrize("bias", [False, True])
def test_weights_come_back_with_the_shift_in_norm_or_bias(bias: bool) -> None:
    edge = Network(
        nn.Conv2d(3, 4, 3, padding=1, bias=bias),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * SIZE**2, 3),
    ).eval()
    network = float_network(edge, export_float(edge, SHAPE), photographs(), PtqConfig())
    changed = network.module.get_submodule("layers.0")
    assert isinstance(changed, PixelConv2d)
    with torch.no_grad():
        changed.weight.mul_(1.5)
        changed.bias.add_(0.25)
    plain = network.without_pixels(network.module)
    assert plain.state_dict().keys() == edge.state_dict().keys()
    torch.testing.assert_close(outputs(plain), outputs(network.module), rtol=1e-4, atol=1e-4)
    assert (outputs(plain) - outputs(edge)).abs().max() > 1e-2
    torch.testing.assert_close(
        outputs(network.with_pixels(plain)), outputs(network.module), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "first",
    [
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 3, 3, groups=3),
        nn.Conv2d(3, 4, 3, bias=False),  # nothing holds what the shift adds
        nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)),
    ],
    ids=["reflecting pads", "groups", "no bias", "an activation first"],
)
def test_first_layers_that_cannot_read_pixels_stay(first: nn.Module) -> None:
    edge = Network(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    network = float_network(edge, export_float(edge, SHAPE), photographs(), PtqConfig())
    assert network.module is edge


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("profile", PROFILES)
def test_the_export_of_a_trained_network_is_checked_integer_by_integer(profile, exact: bool) -> None:  # type: ignore[no-untyped-def]
    images, edge = photographs(), make_edge("none")
    config = QUICK.model_copy(update={"exact": exact})
    network = float_network(edge, export_float(edge, SHAPE), images, config)
    plan = make_plan(network.export.model, images, config, plain=network.plain_model)
    adjusted = Graph(network.export.model)
    apply_plan_constants(adjusted, plan, "u8")
    student = write_constants(network.module, network.export, adjusted)
    place = place_quantizers(network.export.model)
    trained = attach_trainable(student, network.export, plan, place)
    pixels = trained.activations["features/0/0/clamp/0"]
    assert not pixels.limit.requires_grad  # type: ignore[union-attr]
    before = outputs(student)
    optimizer = torch.optim.SGD([p for p in trained.module.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        trained.module.train()
        trained.module(torch.from_numpy(np.concatenate(images))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(outputs(student), before)
    module = network.with_pixels(network.without_pixels(student.eval()))
    export = export_float(module, SHAPE)
    learned = read_back(trained, export, plan, place)
    learned = fit_to_kernels(learned, Graph(export.model), place, images, config)
    assert learned.activations["features/0/0/clamp/0"].params(profile).scale == 2.0**-6
    final = Graph(export.model)
    apply_plan_constants(final, learned, profile)
    model = emit_qdq(export.model, learned, profile, reorders_channels=False)
    quantized = attach_fake_quant(write_constants(module, export, final), export, learned, profile)
    check = check_export(quantized, model, images)
    assert check.largest_lsb <= 1
    assert check.tensors == sum(item.is_quantized(profile) for item in learned.activations.values())
