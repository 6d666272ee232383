"""Convolutions of small maps: the values and gradients of torch's own, and hooks still see them."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgeattn.train import small_maps
from edgeattn.train.small_maps import use_small_map_kernels


def _outcome(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, ...]:
    leaf = x.clone().requires_grad_()
    layer.zero_grad()
    result = layer(leaf)
    (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum().backward()
    found = [result, leaf.grad, layer.weight.grad, *([] if layer.bias is None else [layer.bias.grad])]
    return tuple(item.detach().clone() for item in found if item is not None)


def _agree(layer: nn.Conv2d, x: Tensor) -> None:
    expected = _outcome(layer, x)
    with use_small_map_kernels(layer):
        found = _outcome(layer, x)
    assert len(found) == len(expected) >= 3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_depthwise_gradients_are_torchs(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    bias: bool,
    channels_last: bool,
) -> None:
    if any(size[axis] + 2 * padding[axis] < kernel[axis] for axis in (0, 1)):
        return
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    layer = nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=bias).to(memory_format=layout)
    _agree(layer, torch.randn(3, 6, *size).contiguous(memory_format=layout))


@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    bias=st.booleans(),
)
def test_pointwise_gradients_are_torchs(
    size: tuple[int, int], channels: tuple[int, int], stride: int, padding: int, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(*channels, 1, stride, padding, bias=bias).to(memory_format=torch.channels_last)
    x = torch.randn(3, channels[0], *size).contiguous(memory_format=torch.channels_last)
    _agree(layer, x)


def test_parts_of_a_map_and_other_convolutions_are_computed_alike() -> None:
    torch.manual_seed(0)
    strips = torch.randn(2, 8, 7, 1)[:, :, 2:6]  # as a split leaves them: not contiguous in either layout
    _agree(nn.Conv2d(8, 5, 1), strips)
    for layer in (
        nn.Conv2d(8, 8, 3, padding="same", groups=8),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
        nn.Conv2d(8, 16, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.Conv2d(8, 4, 3, padding=1),
    ):
        _agree(layer, torch.randn(2, 8, 2, 2))


def test_a_map_that_is_smaller_than_the_kernel_takes_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    ours = small_maps._gradient_of_taps

    def counted(*args: object) -> Tensor:
        taken.append(args)
        return ours(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(small_maps, "_gradient_of_taps", counted)
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    with use_small_map_kernels(layer):
        layer(torch.randn(2, 4, 2, 2)).sum().backward()
        assert len(taken) == 1
        layer(torch.randn(2, 4, 3, 3)).sum().backward()
    assert len(taken) == 1


def test_no_graph_is_kept_where_no_gradient_is_wanted() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    with use_small_map_kernels(layer), torch.no_grad():
        assert not layer(torch.randn(2, 4, 2, 2)).requires_grad
    layer.weight.requires_grad_(False)
    x = torch.randn(2, 4, 2, 2, requires_grad=True)
    with use_small_map_kernels(layer):
        layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


def test_modules_are_as_before_afterwards() -> None:
    class Other(nn.Conv2d):
        pass

    network = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), Other(3, 3, 1)
    )
    before = [vars(module).copy() for module in network.modules()]
    with pytest.raises(RuntimeError), use_small_map_kernels(network):
        assert ["forward" in vars(module) for module in network] == [True, False, False]
        network(torch.randn(1, 4, 2, 2))
    assert [vars(module) for module in network.modules()] == before


def test_who_watches_functions_sees_convolutions() -> None:
    seen = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    layer = nn.Conv2d(3, 3, 1)
    with use_small_map_kernels(layer), Watching():
        layer(torch.randn(1, 3, 2, 2))
    assert torch.conv2d in seen
