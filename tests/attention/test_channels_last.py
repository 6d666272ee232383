"""Means and gates in channels-last order: the values and gradients of the plain operations, which hooks still see."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.overrides import TorchFunctionMode

from edgeattn.attention import channels_last
from edgeattn.attention.channels_last import gate_map, mean_over

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))


def _outcome(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [value.detach().clone(memory_format=torch.preserve_format).requires_grad_() for value in inputs]
    result = function(*leaves)
    (result * torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)).sum().backward()
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _map(shape: tuple[int, ...], memory_format: torch.memory_format = torch.channels_last) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format)


def _agree(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) >= 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@given(shape=SIZES, axis=st.sampled_from([2, 3]))
def test_means_are_torchs(shape: tuple[int, int, int, int], axis: int) -> None:
    x = _map(shape)
    _agree(_outcome(lambda x: mean_over(x, axis), x), _outcome(lambda x: x.mean(axis, keepdim=True), x))


@given(shape=SIZES)
def test_gated_maps_are_torchs(shape: tuple[int, int, int, int]) -> None:
    batch, channels, height, width = shape
    gates = _map((batch, channels, 1, width)), _map((batch, channels, height, 1))
    inputs = (_map(shape), *gates)
    _agree(_outcome(gate_map, *inputs), _outcome(lambda x, w, h: x * w * h, *inputs))


def test_gradients_of_gradients_are_refused_not_wrong() -> None:
    inputs = [_map(shape).requires_grad_() for shape in ((2, 3, 4, 5), (2, 3, 1, 5), (2, 3, 4, 1))]
    torch.autograd.gradcheck(gate_map, inputs)
    (slope,) = torch.autograd.grad(gate_map(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_only_unwatched_maps_in_channels_last_order_take_the_fast_way(
    memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: list[Tensor] = []
    monkeypatch.setattr(channels_last._GatedMap, "apply", lambda *inputs: sums.append(inputs[0]) or inputs[0])
    x, gate_w, gate_h = _map((2, 3, 4, 5), memory_format), _map((2, 3, 1, 5)), _map((2, 3, 4, 1))
    gate_map(x, gate_w, gate_h)
    assert len(sums) == (memory_format is torch.channels_last)


def test_hooks_on_functions_see_the_plain_operations() -> None:
    class Names(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    x = _map((2, 3, 4, 5))
    with Names() as names:
        gate_map(x, _map((2, 3, 1, 5)), _map((2, 3, 4, 1)))
        mean_over(x, 2)
    assert [name for name in names.seen if name in ("mul", "mean", "permute", "apply")] == [
        "mul",
        "mul",
        "mean",
    ]
