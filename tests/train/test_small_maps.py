"""Depthwise convolutions of tiny maps as matrices: same values and gradients, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.train import small_maps
from edgeattn.train.small_maps import SmallMapDepthwise


@given(
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    kernel=st.sampled_from([2, 3, 5]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
)
def test_values_and_gradients_are_those_of_the_convolution(
    height: int, width: int, kernel: int, stride: int, padding: int, dilation: int, bias: bool
) -> None:
    if min(height, width) + 2 * padding < dilation * (kernel - 1) + 1:
        return
    generator = torch.Generator().manual_seed(height * 7 + kernel)
    value = torch.randn(3, 5, height, width, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 1, kernel, kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True) if bias else None
    leaves = [leaf for leaf in (value, weight, offset) if leaf is not None]
    results = []
    for entered in (False, True):
        if entered:
            with SmallMapDepthwise():
                out = F.conv2d(value, weight, offset, stride, padding, dilation, 5)
        else:
            out = F.conv2d(value, weight, offset, stride, padding, dilation, 5)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for plain, product in zip(*results, strict=True):
        torch.testing.assert_close(product, plain)


@pytest.mark.parametrize(
    ("shape", "weight", "groups", "replaced"),
    [
        ((2, 4, 2, 2), (4, 1, 3, 3), 4, True),
        ((2, 4, 1, 1), (4, 1, 3, 3), 4, True),
        ((2, 4, 8, 8), (4, 1, 3, 3), 4, False),
        ((2, 4, 2, 2), (8, 1, 3, 3), 4, False),
        ((2, 4, 2, 2), (4, 2, 3, 3), 2, False),
        ((2, 4, 2, 2), (4, 4, 3, 3), 1, False),
        ((2, 4, 2, 2), (4, 1, 1, 1), 4, False),
    ],
)
def test_only_depthwise_convolutions_of_tiny_maps_are_replaced(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    groups: int,
    replaced: bool,
) -> None:
    seen = []
    product = small_maps._Call.as_product
    monkeypatch.setattr(small_maps._Call, "as_product", lambda call: seen.append(1) or product(call))
    value, kernel = torch.randn(shape), torch.randn(weight)
    with SmallMapDepthwise():
        found = F.conv2d(value, kernel, padding=kernel.shape[-1] // 2, groups=groups)
    torch.testing.assert_close(found, F.conv2d(value, kernel, padding=kernel.shape[-1] // 2, groups=groups))
    assert bool(seen) is replaced


def test_modules_are_seen_too() -> None:
    layer = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6)
    value = torch.randn(2, 6, 2, 2)
    with SmallMapDepthwise():
        found = layer(value)
    assert found.grad_fn is not None
    assert found.grad_fn.name() != layer(value).grad_fn.name()
