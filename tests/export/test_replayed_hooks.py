"""Hooks that are found by counting operations do what NNCF does that finds them by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nncf.torch.function_hook import register_post_function_hook, register_pre_function_hook, wrap_model
from torch import nn

from edgeattn.errors import ModelError
from edgeattn.export.replayed_hooks import replay_hooks
from edgeattn.train import small_maps
from edgeattn.train.small_maps import use_small_map_kernels


class _Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value.mul(self.factor).add(0.125).sub(0.0625)


class _Network(nn.Module):
    """Operations that NNCF names by hand (a functional call in a branch), and ones that differ in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.tail = nn.Conv2d(4, 4, 1)
        self.extra_operation = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.norm(self.conv(images))
        gate = torch.sigmoid(nn.functional.conv2d(maps.mean((2, 3), keepdim=True), self.tail.weight))
        if self.extra_operation:
            maps = maps.abs()
        maps = self.dropout(maps * gate)
        return nn.functional.relu6(self.tail(maps)).flatten(1).sum(1)


def _hooked() -> nn.Module:
    torch.manual_seed(0)
    wrapped: Any = wrap_model(_Network())
    register_pre_function_hook(wrapped, "conv/conv2d/0", 1, _Scaled(0.5))
    register_pre_function_hook(wrapped, "/conv2d/0", 1, _Scaled(2.0))
    register_post_function_hook(wrapped, "norm/batch_norm/0", 0, _Scaled(0.75))
    register_post_function_hook(wrapped, "tail/conv2d/0", 0, _Scaled(1.25))
    register_post_function_hook(wrapped, "images", 0, _Scaled(1.5))
    result: nn.Module = wrapped
    return result


IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3))


def _outputs(network: nn.Module, *, calls: int) -> list[torch.Tensor]:
    """Return logits, gradients and buffers of some calls in training, and logits of some in evaluation."""
    found: list[torch.Tensor] = []
    network.train()
    for call in range(calls):
        torch.manual_seed(call)
        network.zero_grad()
        logits = network(IMAGES)
        logits.square().sum().backward()
        found += [logits.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]
    network.eval()
    found += [network(IMAGES).detach() for _ in range(calls)]
    return found + [value.clone() for name, value in sorted(network.named_buffers()) if "norm" in name]


def test_outputs_gradients_and_buffers_are_the_same_bit_for_bit() -> None:
    by_name, by_count = _hooked(), _hooked()
    replay_hooks(by_count)
    expected, got = _outputs(by_name, calls=3), _outputs(by_count, calls=3)
    assert len(expected) == len(got) > 30
    assert all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))


def test_hooks_act_where_small_maps_have_kernels_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    matrix_product = torch.nn.functional.linear

    def counted(*args: torch.Tensor) -> torch.Tensor:
        taken.append(args)
        return matrix_product(*args)

    monkeypatch.setattr(small_maps.F, "linear", counted)
    usual, small, named = _hooked(), _hooked(), _hooked()
    replay_hooks(usual)
    replay_hooks(small)
    expected = _outputs(usual, calls=3)
    assert not taken
    with use_small_map_kernels(named):
        same = _outputs(named, calls=3)
    assert not taken
    with use_small_map_kernels(small):
        got = _outputs(small, calls=3)
    assert len(taken) == 2 * (2 + 2)  # two pointwise convolutions; the first call of each mode takes names
    assert small.forward.convolution is torch.conv2d
    assert len(expected) == len(got) == len(same) > 30
    for one, other, third in zip(expected, got, same, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert torch.equal(one, third)


def test_every_hook_acts_in_calls_that_count() -> None:
    network = _hooked().eval()
    replay_hooks(network)
    network(IMAGES)
    before = network(IMAGES)
    scales = [module for module in network.modules() if isinstance(module, _Scaled)]
    assert len(scales) == 5
    for scaled in scales:
        with torch.no_grad():
            scaled.factor.add_(0.5)
        assert not torch.equal(network(IMAGES), before)
        with torch.no_grad():
            scaled.factor.sub_(0.5)


def test_a_copy_has_hooks_of_its_own() -> None:
    network = _hooked().eval()
    replay_hooks(network)
    before = network(IMAGES)
    network(IMAGES)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not torch.equal(other(IMAGES), before)
    assert torch.equal(other(IMAGES), other(IMAGES))
    assert torch.equal(network(IMAGES), before)


def test_a_network_whose_operations_change_is_refused() -> None:
    network: Any = _hooked().eval()
    replay_hooks(network)
    network(IMAGES)
    network.extra_operation = True
    with pytest.raises(ModelError, match="other operations than at its first call"):
        network(IMAGES)
    network.extra_operation = False
    network(IMAGES)


def test_a_network_that_runs_fewer_operations_is_refused() -> None:
    network: Any = _hooked().eval()
    network.extra_operation = True
    replay_hooks(network)
    network(IMAGES)
    network.extra_operation = False
    with pytest.raises(ModelError, match="other operations than at its first call"):
        network(IMAGES)
