"""What no mechanism may accept, for every one that has the option; and small maps, which all accept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeattn.attention import attention_options, attentions, mechanism_class
from edgeattn.attention.base import Mechanism
from edgeattn.errors import ModelError, RecipeError

ON_MAPS = tuple(name for name in attentions if attentions.get(name).contract in ("map", "convolution"))
FORMS = [(kind, form) for kind in ON_MAPS for form in attentions.get(kind).edge_forms]


def make(kind: str, channels: int = 32, **options: object) -> Mechanism:
    more = (channels,) if attentions.get(kind).contract == "convolution" else ()
    module: Mechanism = mechanism_class(kind)(channels, *more, **options)
    return module


def having(option: str) -> list[str]:
    found = [kind for kind in ON_MAPS if option in attention_options(kind)]
    assert found, option
    return found


@pytest.mark.parametrize("kind", having("heads"))
def test_channels_must_be_divisible_by_heads(kind: str) -> None:
    with pytest.raises(RecipeError, match=r"heads=5"):
        make(kind, heads=5)
    with pytest.raises(RecipeError, match="heads"):
        make(kind, heads=0)


@pytest.mark.parametrize("kind", having("groups"))
def test_channels_must_be_divisible_by_groups(kind: str) -> None:
    with pytest.raises(RecipeError, match=r"groups must divide the 32.*got 5|groups=5"):
        make(kind, groups=5)
    with pytest.raises(RecipeError, match="groups"):
        make(kind, groups=0)


@pytest.mark.parametrize("kind", having("reduction"))
def test_reduction_must_be_positive_and_leaves_a_channel(kind: str) -> None:
    with pytest.raises(RecipeError, match="reduction"):
        make(kind, reduction=0)
    # One that divides nothing is rounded as the authors do, and one that is too large leaves something.
    for reduction in (5, 64):
        module = make(kind, reduction=reduction).eval()
        assert module(torch.zeros(1, 32, 4, 4)).shape == (1, 32, 4, 4)


@pytest.mark.parametrize("kind", having("kernel_size"))
def test_kernels_must_be_odd(kind: str) -> None:
    for size in (2, 0, -3):
        with pytest.raises(RecipeError, match="odd"):
            make(kind, kernel_size=size)


@pytest.mark.parametrize("kind", ON_MAPS)
def test_unknown_options_are_refused(kind: str) -> None:
    with pytest.raises(TypeError, match="kernal"):
        make(kind, kernal=3)


@pytest.mark.parametrize("kind", ON_MAPS)
def test_maps_of_other_ranks_and_channels_are_refused(kind: str) -> None:
    edge = make(kind).edge_form(4, 5)
    for shape in ((1, 32, 4), (1, 31, 4, 5), (1, 32, 5, 4), (1, 32, 4, 6)):
        with pytest.raises(ModelError, match="made for maps of 32x4x5"):
            edge(torch.zeros(shape))


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_maps_smaller_than_a_kernel_are_padded(kind: str, form: str) -> None:
    """Every kernel here is padded, so a map that is smaller has a result, and the fixed form has the same."""
    torch.manual_seed(0)
    module = make(kind).double().eval()
    for height, width in ((1, 1), (1, 5), (2, 2), (3, 2)):
        x = torch.randn(2, 32, height, width, dtype=torch.float64)
        with torch.no_grad():
            expected = module(x)
            assert expected.shape == x.shape
            assert np.isfinite(expected.numpy()).all()
            assert float((module.edge_form(height, width, form)(x) - expected).abs().max()) < 1e-9
