"""The quantizer whose range is learned: values and gradients are those of torch's own learnable quantizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.export.learned_quantizer import LearnedQuantizer


def _gradients(result: torch.Tensor, *wanted: torch.Tensor) -> tuple[torch.Tensor, ...]:
    pull = torch.randn(result.shape, generator=torch.Generator().manual_seed(7))
    return torch.autograd.grad((result * pull).sum(), wanted)


@settings(max_examples=40, deadline=None)
@given(
    limit=st.floats(0.05, 8.0),
    bounds=st.sampled_from([(-128, 127), (0, 255), (-127, 127)]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=st.integers(0, 1000),
)
def test_one_range_for_all_has_the_values_and_gradients_of_torch(
    limit: float, bounds: tuple[int, int], layout: torch.memory_format, seed: int
) -> None:
    low, high = bounds
    value = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(seed)).to(memory_format=layout)
    value.requires_grad_(True)
    quantizer = LearnedQuantizer(np.asarray([limit]), low, high)
    step = (quantizer.limit.detach() / high).requires_grad_(True)
    expected = torch._fake_quantize_learnable_per_tensor_affine(value, step, torch.zeros(1), low, high, 1.0)
    result = quantizer(value)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    own_value, own_limit = _gradients(result, value, quantizer.limit)
    their_value, their_step = _gradients(expected, value, step)
    assert torch.equal(own_value, their_value)
    torch.testing.assert_close(own_limit, their_step / high, rtol=1e-3, atol=1e-4)


def test_a_range_for_each_channel_has_the_values_and_gradients_of_torch() -> None:
    weight = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    limits = np.linspace(0.3, 3.0, 6)
    quantizer = LearnedQuantizer(limits, -127, 127, rank=4)
    assert quantizer.limit.shape == (6, 1, 1, 1)
    steps = (quantizer.limit.detach().flatten() / 127).requires_grad_(True)
    expected = torch._fake_quantize_learnable_per_channel_affine(
        weight, steps, torch.zeros(6), 0, -127, 127, 1.0
    )
    result = quantizer(weight)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    own_weight, own_limits = _gradients(result, weight, quantizer.limit)
    their_weight, their_steps = _gradients(expected, weight, steps)
    assert torch.equal(own_weight, their_weight)
    torch.testing.assert_close(own_limits.flatten(), their_steps / 127, rtol=1e-3, atol=1e-4)


def test_the_sign_of_a_learned_limit_means_nothing_but_turns_its_gradient() -> None:
    value = torch.linspace(-3, 3, 50)
    plus, minus = (LearnedQuantizer(np.asarray([sign * 1.5]), -128, 127) for sign in (1.0, -1.0))
    assert torch.equal(plus(value), minus(value))
    for quantizer in (plus, minus):
        quantizer(value).square().sum().backward()
    assert plus.limit.grad is not None and plus.limit.grad.item() != 0
    assert minus.limit.grad is not None and minus.limit.grad.item() == -plus.limit.grad.item()


def test_a_fixed_range_gets_no_gradient_and_passes_that_of_its_input() -> None:
    quantizer = LearnedQuantizer(np.asarray([1.0]), 0, 255)
    quantizer.limit.requires_grad_(False)
    value = torch.tensor([-0.5, 0.25, 0.75, 1.5], requires_grad=True)
    quantizer(value).sum().backward()
    assert quantizer.limit.grad is None
    assert value.grad is not None and value.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("limit", [0.0, 1e-30])
def test_a_range_of_nothing_gives_finite_values(limit: float) -> None:
    quantizer = LearnedQuantizer(np.asarray([limit]), -128, 127)
    assert torch.isfinite(quantizer(torch.tensor([0.0, 1.0, -1.0]))).all()
