"""Where attention goes, in this package's networks and in other people's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_kinds import RECIPE_KINDS
from network_replicas import (
    FlatBlock,
    ReplicaMbConv,
    ReplicaMobileNetV2,
    TimmInverted,
    TimmSeparable,
    network_of,
    randomize,
)
from torch import nn

from edgeattn.attention.base import Attention
from edgeattn.errors import ModelError, RecipeError
from edgeattn.models import absorb_gains, count_parameters, create_model, insert_attention, to_edge_form
from edgeattn.models.insertion import find_blocks

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def places(model: nn.Module) -> dict[str, int]:
    return {path: m.channels for path, m in model.named_modules() if isinstance(m, Attention)}


def small() -> nn.Module:
    return randomize(create_model("mobilenet_v2", num_classes=5, width=0.25))


@pytest.mark.parametrize(
    ("kind", "options", "parameters"),
    [
        ("coord", {}, 3_950_648),
        ("eca", {"kernel_size": "repository"}, 3_504_903),
        ("triplet", {}, 3_509_972),
        ("triplet", {"kernel_size": 3}, 3_505_892),
    ],
)
def test_authors_networks_have_the_authors_sizes(kind: str, options: dict[str, Any], parameters: int) -> None:
    model = insert_attention(create_model("mobilenet_v2", num_classes=1000), kind, **options)
    assert count_parameters(model) == parameters


def test_authors_places() -> None:
    model = create_model("mobilenet_v2", num_classes=10)
    coord = places(insert_attention(model, "coord"))
    assert list(coord) == [f"features.{i}.conv.attention" for i in range(2, 18)]
    assert [coord[f"features.{i}.conv.attention"] for i in (2, 3, 17)] == [96, 144, 960]
    eca = places(insert_attention(model, "eca"))
    assert list(eca) == [f"features.{i}.conv.attention" for i in range(1, 18)]
    assert [eca[f"features.{i}.conv.attention"] for i in (1, 2, 17)] == [16, 24, 320]
    block = insert_attention(model, "coord").get_submodule("features.2.conv")
    assert [name for name, _ in block.named_children()] == ["0", "1", "attention", "2", "3"]
    block = insert_attention(model, "eca").get_submodule("features.1.conv")
    assert [name for name, _ in block.named_children()] == ["0", "1", "2", "attention"]


def test_the_given_model_stays_as_it_is() -> None:
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(X)
    changed = insert_attention(model, "coord", identity=False)
    assert not places(model)
    assert set(before) == set(model.state_dict())
    assert torch.equal(model(X), expected)
    assert not torch.equal(changed(X), expected)
    # The keys of the backbone did not move.
    assert set(before) <= set(changed.state_dict())


@pytest.mark.parametrize("kind", RECIPE_KINDS)
@pytest.mark.parametrize("where", ["hidden", "output"])
@pytest.mark.parametrize("arch", ["mobilenet_v2", "efficientnet_b0", "efficientnet_lite0"])
def test_identity_start_and_absorbing_move_nothing(arch: str, where: str, kind: str) -> None:
    model = randomize(create_model(arch, num_classes=5, width=0.25))
    with torch.no_grad():
        expected = model(X)
        started = insert_attention(model, kind, where=where)
        new = set(places(started)) - set(places(model))
        assert len(new) == len([b for b in find_blocks(model) if b.expands or where == "output"])
        assert torch.equal(started(X), expected)
        assert absorb_gains(started) == []
        assert all(started.get_submodule(path).gain == 1.0 for path in new)
        assert not any(key.endswith("gain") for key in started.state_dict())
        # Triplet's sum of thirds rounds; everything else is exact.
        assert float((started(X) - expected).detach().abs().max()) <= (1e-5 if kind == "triplet" else 0.0)


@pytest.mark.parametrize("kind", RECIPE_KINDS)
def test_a_network_that_starts_as_identity_learns(kind: str) -> None:
    torch.manual_seed(0)
    model = insert_attention(small(), kind).train()
    # Maps of more than one pixel and more than two images, or batch norms leave no gradient.
    x, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):  # the zeroed layers move first, then the layers before them
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        gates = [model.get_submodule(path) for path in places(model)]
        assert all(any(float(p.grad.abs().max()) > 0 for p in gate.parameters()) for gate in gates)
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_training_mode_and_type_follow_the_model() -> None:
    model = create_model("mobilenet_v2", num_classes=5, width=0.25).double()
    assert insert_attention(model, "coord").training
    assert not any(m.training for m in insert_attention(model.eval(), "coord").modules())
    assert all(p.dtype == torch.float64 for p in insert_attention(model, "triplet").parameters())


# ------------------------------------------------------------------------------- other people's networks


def test_torchvision_mobilenet() -> None:
    model = randomize(ReplicaMobileNetV2())
    ours = insert_attention(create_model("mobilenet_v2", num_classes=10), "coord")
    theirs = insert_attention(model, "coord")
    assert places(theirs) == places(ours)
    assert torch.equal(theirs(X), model(X))


def test_flat_blocks() -> None:
    model = randomize(network_of(FlatBlock(8, 8, 1, 1, None), FlatBlock(8, 16, 1, 6, None), channels=16))
    assert places(insert_attention(model, "coord")) == {"1.1.conv.attention": 48}
    hidden = insert_attention(model, "coord").get_submodule("1.1.conv")
    assert [name for name, _ in hidden.named_children()] == [
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
        "attention",
        "6",
        "7",
    ]
    assert places(insert_attention(model, "eca")) == {"1.0.conv.attention": 8, "1.1.conv.attention": 16}
    assert torch.equal(insert_attention(model, "coord")(X), model(X))


def test_torchvision_mbconv() -> None:
    model = randomize(network_of(ReplicaMbConv(8, 8, 1), ReplicaMbConv(8, 16, 4), channels=16))
    hidden = insert_attention(model, "coord")
    assert places(hidden) == {"1.1.block.attention": 32}
    names = [name for name, _ in hidden.get_submodule("1.1.block").named_children()]
    assert names == ["0", "1", "2", "attention", "3"]  # behind Squeeze-and-Excitation
    assert places(insert_attention(model, "eca")) == {"1.0.block.attention": 8, "1.1.block.attention": 16}
    assert torch.equal(hidden(X), model(X))
    edge = to_edge_form(hidden, 32, 32)
    assert not any(isinstance(m, nn.AdaptiveAvgPool2d) for m in edge.modules())
    assert float((edge(X) - model(X)).detach().abs().max()) < 1e-5


@pytest.mark.parametrize("se", [False, True])
def test_timm_blocks(se: bool) -> None:
    model = randomize(
        network_of(TimmSeparable(8, 8), TimmInverted(8, 16, se=se), TimmInverted(16, 16, se=se), channels=16)
    )
    hidden = insert_attention(model, "coord")
    assert places(hidden) == {"1.1.se.attention": 32, "1.2.se.attention": 64}
    output = insert_attention(model, "triplet")
    assert places(output) == {"1.0.bn2.attention": 8, "1.1.bn3.attention": 16, "1.2.bn3.attention": 16}
    for changed in (hidden, output):
        assert torch.equal(changed(X), model(X))
        assert absorb_gains(changed) == []
        assert float((changed(X) - model(X)).detach().abs().max()) < 1e-5
        assert float((to_edge_form(changed, 32, 32)(X) - model(X)).detach().abs().max()) < 1e-5
    # A norm with its activation inside cannot be scaled.
    behind = insert_attention(model, "eca", where="1.0.bn1")
    assert absorb_gains(behind) == ["1.0.bn1.attention"]
    assert torch.equal(behind(X), model(X))


# ------------------------------------------------------------------------------------------ explicit places


def test_module_paths_and_patterns() -> None:
    model = small()
    one = insert_attention(model, "eca", where="features.3")
    assert places(one) == {"features.attention": 8}
    assert [name for name, _ in one.get_submodule("features").named_children()][3:5] == ["3", "attention"]
    two = insert_attention(model, "se", where=["features.3", "features.7.conv.1"])
    assert places(two) == {"features.attention": 8, "features.7.conv.attention": 48}
    several = insert_attention(model, "coord", where="features.[1-3].conv")
    assert len(places(several)) == 3
    for changed in (one, two, several):
        assert torch.equal(changed(X), model(X))
    both = insert_attention(model, "eca", where=["features.3", "features.4"])
    assert list(places(both)) == ["features.attention", "features.attention_4"]
    again = insert_attention(insert_attention(model, "coord"), "eca")
    assert len(places(again)) == 33
    assert torch.equal(again(X), model(X))


def test_a_gain_behind_a_residual_add_is_not_absorbed() -> None:
    model = small()
    started = insert_attention(model, "eca", where="features.3")
    # features.3 adds its input: nothing linear stands right before the gate, and features.4 adds too
    # (or expands first, inside a block), so neither neighbour is certain.
    assert absorb_gains(started) == ["features.attention"]
    assert torch.equal(started(X), model(X))
    edge = to_edge_form(started, 32, 32)
    assert float((edge(X) - model(X)).detach().abs().max()) < 1e-5


def test_constants_can_be_absorbed() -> None:
    model = insert_attention(small(), "triplet", identity=False).requires_grad_(False)
    expected = model(X)
    plain = to_edge_form(model, 32, 32, materialize=True)
    folded = to_edge_form(model, 32, 32, materialize=True, absorb="constants")
    assert {m.factor for m in folded.modules() if hasattr(m, "factor")} == {1.0}
    assert {round(m.factor, 6) for m in plain.modules() if hasattr(m, "factor")} == {0.333333}
    for edge in (plain, folded):
        assert float((edge(X) - expected).detach().abs().max()) < 1e-5
    assert torch.equal(model(X), expected)
    assert absorb_gains(model, constants=True) == []
    assert float((model(X) - expected).detach().abs().max()) < 1e-5
    assert sum(key.endswith("gain") for key in model.state_dict()) == 17


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("hiden", "Did you mean 'hidden'"),
        ("features.3.convs", "Did you mean 'features.3.conv'"),
        (["features.99"], "There is no module 'features.99'"),
        ([], "where is an empty list"),
        ("classifier.1", "needs a map"),
    ],
)
def test_unknown_places(where: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        insert_attention(small(), "eca", where=where)


def test_no_recognized_block() -> None:
    with pytest.raises(ModelError, match="No inverted residual block was recognized in Sequential"):
        insert_attention(nn.Sequential(nn.Conv2d(3, 8, 3)), "eca")


def test_unknown_options_and_kinds() -> None:
    with pytest.raises(TypeError, match=r"no option 'reducton'\. Did you mean 'reduction'"):
        insert_attention(small(), "coord", reducton=16)
    with pytest.raises(RecipeError, match="Unknown attention 'coordd'"):
        insert_attention(small(), "coordd")


def test_inside_an_attention_is_no_place() -> None:
    model = insert_attention(small(), "coord")
    with pytest.raises(RecipeError, match="lies inside an attention module"):
        insert_attention(model, "eca", where="features.2.conv.attention.conv1")
