"""What every mechanism that takes the place of a convolution, and each of its edge forms, must do."""

from __future__ import annotations

from typing import Any

import cases_branch
import cases_map_gates
import cases_spatial
import numpy as np
import pytest
import torch

from edgeattn.attention import attentions, create_attention, mechanism_class
from edgeattn.attention.base import ConvolutionAttention
from edgeattn.errors import ModelError, RecipeError
from edgeattn.models import create_model, insert_attention, replace_convolutions, to_edge_form

CASES = {**cases_branch.CONVOLUTIONS, **cases_spatial.CONVOLUTIONS, **cases_map_gates.CONVOLUTIONS}
KINDS = tuple(name for name in attentions if attentions.get(name).contract == "convolution")
FORMS = [(kind, form) for kind in KINDS for form in attentions.get(kind).edge_forms]


def make(kind: str, seed: int = 0, **options: Any) -> ConvolutionAttention:
    """In float64 and evaluation mode with random weights and statistics."""
    generator = torch.Generator().manual_seed(seed)
    module: ConvolutionAttention = mechanism_class(kind)(12, 12, **options).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.3)
    return module


def maps(height: int, width: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 12, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_float_form_equals_the_paper(kind: str) -> None:
    for number, options in enumerate(CASES[kind].variants):
        module = make(kind, number, **options)
        x = maps(5, 6)
        weights = {key: value.numpy() for key, value in module.state_dict().items()}
        expected = CASES[kind].oracle(x.numpy(), weights, options)
        got = module(x).detach().numpy()
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() < CASES[kind].tolerance * max(1.0, float(np.abs(expected).max()))


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_edge_form_is_exact_and_shares_parameters(kind: str, form: str) -> None:
    for options in CASES[kind].variants:
        for height, width in CASES[kind].sizes:
            module = make(kind, **options)
            edge = module.edge_form(height, width, form)
            for batch in (1, 2):
                x = maps(height, width, batch)
                expected = module(x)
                for got in (edge(x), edge.materialize()(x)):
                    assert float((got - expected).detach().abs().max()) < 1e-9
            assert set(edge.state_dict()) == set(module.state_dict())
            assert {id(p) for p in edge.parameters()} == {id(p) for p in module.parameters()}


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_edge_form_has_the_float_forms_gradients(kind: str, form: str) -> None:
    module = make(kind)
    edge = module.edge_form(5, 6, form)
    x = maps(5, 6)
    module(x).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in module.named_parameters()}
    module.zero_grad()
    edge(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and expected[name] is not None
        assert torch.allclose(parameter.grad, expected[name], atol=1e-8), name
        assert float(parameter.grad.abs().sum()) > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_type_repetition_training_and_state(kind: str) -> None:
    module, other = make(kind).float(), make(kind, seed=5).float()
    x = maps(5, 6).float()
    assert module(x).dtype == torch.float32
    assert torch.equal(module(x), module(x))
    other.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(other(x), module(x))
    assert module.train()(x).shape == x.shape
    assert module.eval().bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_are_named(kind: str) -> None:
    for channels, options, message in CASES[kind].bad:
        with pytest.raises(RecipeError, match=message):
            mechanism_class(kind)(channels, channels, **options)
    with pytest.raises(RecipeError, match="must be odd"):
        mechanism_class(kind)(4, 4, 2)
    with pytest.raises(RecipeError, match="out_channels must be positive"):
        mechanism_class(kind)(4, 0)
    with pytest.raises(TypeError):
        mechanism_class(kind)(4, 4, kernal=3)
    with pytest.raises(ModelError, match="made for maps of 12x5x6"):
        make(kind).edge_form(5, 6)(maps(6, 5))
    with pytest.raises(RecipeError, match="replace_convolutions"):
        create_attention(kind, 4)
    with pytest.raises(RecipeError, match=f"{kind!r} cannot be inserted"):
        insert_attention(create_model("mobilenet_v2", num_classes=3, width=0.35), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_replaces_the_depthwise_convolutions_of_a_network(kind: str) -> None:
    model = create_model("mobilenet_v2", num_classes=3, width=0.35).eval()
    replaced = replace_convolutions(model, kind)
    found = [module for module in replaced.modules() if isinstance(module, ConvolutionAttention)]
    assert len(found) == 17
    x = torch.randn(1, 3, 32, 32)
    edge = to_edge_form(replaced, 32, 32, materialize=True)
    with torch.no_grad():
        expected = replaced(x)
        assert torch.allclose(edge(x), expected, atol=1e-4 * float(expected.abs().max() + 1))
    with pytest.raises(TypeError, match="no option 'strides'"):
        replace_convolutions(model, kind, strides=2)
    with pytest.raises(ModelError, match="no convolution 'nowhere'"):
        replace_convolutions(model, kind, where="nowhere")
    with pytest.raises(ModelError, match="cannot be replaced"):
        replace_convolutions(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 2)), kind, where="0")


@pytest.mark.parametrize("groups", [1, 12])
def test_scconv_starts_from_each_halfs_weights_with_only_the_gate_to_learn(groups: int) -> None:
    module = mechanism_class("scconv")(12, 12, groups=groups).double().eval()
    weight = torch.randn(12, 12 // groups, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    assert isinstance(module, ConvolutionAttention)
    assert module.begin_with(weight)
    with torch.no_grad():
        # The gate is sigmoid(x + context): 1 where x is large.
        x = maps(5, 6).abs() + 60
        joined = (
            weight
            if groups == 12
            else torch.block_diag(torch.ones(6, 6), torch.ones(6, 6))[:, :, None, None] * weight
        )
        expected = torch.nn.functional.conv2d(x, joined, padding=1, groups=groups)
        assert torch.allclose(module(x), expected, rtol=1e-4)
