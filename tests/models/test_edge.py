"""From a float network to its edge form."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from attention_kinds import RECIPE_KINDS
from network_replicas import randomize
from torch import nn

from edgeattn.attention import attentions
from edgeattn.attention.base import Attention, EdgeForm
from edgeattn.errors import ModelError, RecipeError
from edgeattn.models import create_model, insert_attention, load_weights, save_weights, to_edge_form

X = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))


def network(kind: str, arch: str = "mobilenet_v2", *, identity: bool = False) -> nn.Module:
    model = create_model(arch, num_classes=5, width=0.25)
    return randomize(insert_attention(model, kind, identity=identity))


@pytest.mark.parametrize("kind", RECIPE_KINDS)
@pytest.mark.parametrize("materialize", [False, True])
def test_every_form_equals_the_float_network(kind: str, materialize: bool) -> None:
    model = network(kind).double()
    expected = model(X.double())
    for form in attentions.get(kind).edge_forms:
        edge = to_edge_form(model, 40, 56, form=form, materialize=materialize)
        made = [m for m in edge.modules() if isinstance(m, EdgeForm)]
        assert {m.form for m in made} == {form}
        assert not any(isinstance(m, (Attention, nn.AdaptiveAvgPool2d)) for m in edge.modules())
        assert float((edge(X.double()) - expected).detach().abs().max()) < 1e-9


@pytest.mark.parametrize("kind", RECIPE_KINDS)
def test_parameters_are_shared_under_the_same_keys(kind: str) -> None:
    model = network(kind)
    edge = to_edge_form(model, 40, 56)
    mine, theirs = dict(model.named_parameters()), dict(edge.named_parameters())
    assert set(mine) == set(theirs)
    assert all(mine[name] is theirs[name] for name in mine)
    assert set(model.state_dict()) == set(edge.state_dict())
    optimizer = torch.optim.SGD(edge.parameters(), lr=0.01)
    before = model(X).detach()
    edge(X).square().sum().backward()
    optimizer.step()
    after = model(X).detach()
    assert float((after - before).detach().abs().max()) > 0
    assert float((edge(X) - after).detach().abs().max()) < 1e-4


def test_batch_statistics_reach_the_float_network() -> None:
    model = network("coord").train()
    twin = copy.deepcopy(model)
    edge = to_edge_form(twin, 40, 56)
    for m in (*model.modules(), *twin.modules(), *edge.modules()):
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    model(X)
    edge(X)
    for key, value in model.state_dict().items():
        assert torch.allclose(twin.state_dict()[key], value, atol=1e-4), key


def test_materialized_shares_nothing() -> None:
    model = network("triplet", identity=True)
    gains = [m.gain for m in model.modules() if isinstance(m, Attention)]
    edge = to_edge_form(model, 40, 56, materialize=True)
    memory = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    assert not memory & {t.untyped_storage().data_ptr() for t in edge.state_dict().values() if t.numel()}
    assert not edge.training
    assert [m.gain for m in model.modules() if isinstance(m, Attention)] == gains


def test_modes_are_left_alone() -> None:
    model = network("coord").train()
    frozen = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in frozen:
        m.eval()
    edge = to_edge_form(model, 40, 56)
    assert model.training and edge.training
    assert not any(m.training for m in (*model.modules(), *edge.modules()) if isinstance(m, nn.BatchNorm2d))


def test_gain_stays_when_nothing_is_absorbed() -> None:
    model = network("coord", identity=True)
    expected = model(X)
    edge = to_edge_form(model, 40, 56, absorb="nothing")
    assert {m.gain for m in edge.modules() if isinstance(m, EdgeForm)} == {4.0}
    assert float((edge(X) - expected).detach().abs().max()) < 1e-5
    to_edge_form(model, 40, 56)
    assert {m.gain for m in model.modules() if isinstance(m, Attention)} == {1.0}
    assert torch.equal(model(X), expected)


def test_efficientnet_se_becomes_static_too() -> None:
    model = network("coord", "efficientnet_b0")
    edge = to_edge_form(model, 40, 56, form={"se": "mean_conv"})
    made = [m for m in edge.modules() if isinstance(m, EdgeForm)]
    assert {(m.kind, m.form) for m in made} == {("se", "mean_conv"), ("coord", "two_branch_pool")}
    assert float((edge(X) - model(X)).detach().abs().max()) < 1e-5


def test_one_name_applies_to_the_mechanisms_that_have_it() -> None:
    model = network("coord", "efficientnet_b0")
    edge = to_edge_form(model, 40, 56, form="concat_reshape")
    made = {(m.kind, m.form) for m in edge.modules() if isinstance(m, EdgeForm)}
    assert made == {("se", "pool_conv"), ("coord", "concat_reshape")}


def test_another_input_size_is_refused() -> None:
    edge = to_edge_form(network("coord"), 40, 56)
    with pytest.raises(ModelError, match=r"made for maps of 48x10x14, got \(1, 48, 14, 10\)"):
        edge(torch.randn(1, 3, 56, 40))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            "two_branch",
            "No attention in this network has an edge form 'two_branch'. Did you mean 'two_branch_",
        ),
        ({"coord": "mean"}, "'coord' has no edge form 'mean'"),
        ({"cord": "two_branch_pool"}, "Did you mean 'coord'"),
    ],
)
def test_unknown_forms(form: str | dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        to_edge_form(network("coord"), 32, 32, form=form)


def test_unknown_absorb() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'gains'"):
        to_edge_form(network("coord"), 32, 32, absorb="gain")  # type: ignore[arg-type]


def test_an_attention_used_at_two_sizes_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.gate = insert_attention(nn.Sequential(nn.Conv2d(8, 8, 1)), "eca", where="0")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.gate(self.stem(x))
            return self.gate(nn.functional.max_pool2d(y, 2))  # type: ignore[no-any-return]

    with pytest.raises(ModelError, match="called with several sizes"):
        to_edge_form(Twice(), 8, 8)


def test_edge_weights_load_into_the_float_network(tmp_path: Path) -> None:
    model = network("triplet")
    edge = to_edge_form(model, 40, 56)
    path = save_weights(edge, tmp_path / "edge.safetensors")
    other = network("triplet")
    load_weights(other, path, strict=True)
    assert torch.equal(other(X), model(X))


@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript:DeprecationWarning")
def test_a_whole_network_exports_without_dynamic_shapes(tmp_path: Path) -> None:
    model = network("coord", "efficientnet_b0")
    edge = to_edge_form(model, 40, 56, materialize=True)
    path = tmp_path / "net.onnx"
    torch.onnx.export(edge, (X[:1],), str(path), dynamo=False, opset_version=17, input_names=["x"])
    graph = onnx.load(path).graph
    assert not {node.op_type for node in graph.node} & {
        "Shape",
        "Transpose",
        "Expand",
        "Gather",
        "Slice",
        "Split",
    }
    (got,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, {"x": X[:1].numpy()}
    )
    assert np.abs(got - model(X[:1]).detach().numpy()).max() < 1e-4
