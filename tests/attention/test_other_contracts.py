"""Mechanisms that take sequences or several maps, and criteria: formulas, shapes, gradients, mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attention_case import Array, convolve, norm, sigmoid

from edgeattn.attention import attentions, create_attention, mechanism_class
from edgeattn.attention.aff import AttentionalFusion
from edgeattn.attention.asff import AdaptiveSpatialFusion
from edgeattn.attention.fpn import FeaturePyramid
from edgeattn.attention.gated_tcn import GatedTemporalConvolution
from edgeattn.attention.gltr import GlobalLocalTemporal
from edgeattn.attention.info_nce import InfoNce
from edgeattn.attention.panet import PathAggregation
from edgeattn.attention.proto_align import PrototypeAlignment, PrototypeHead
from edgeattn.attention.tam import TemporalAdaptive
from edgeattn.errors import ModelError, RecipeError
from edgeattn.models import create_model, insert_attention
from edgeattn.models.example import make_example

KINDS = [name for name in attentions if attentions.get(name).contract in ("sequence", "fusion", "criterion")]


def lively(module: torch.nn.Module, seed: int = 0) -> dict[str, Array]:
    """Give a module random float64 weights and statistics; return them as arrays."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.3)
    return {key: value.numpy() for key, value in module.state_dict().items()}


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(got: torch.Tensor, expected: Array) -> float:
    assert tuple(got.shape) == expected.shape
    return float(np.abs(got.detach().numpy() - expected).max())


def conv_bn(x: Array, w: dict[str, Array], key: str, **options: Any) -> Array:
    return norm(convolve(x, w[f"{key}.0.weight"], w.get(f"{key}.0.bias"), **options), w, f"{key}.1")


def softmax(z: Array, axis: int) -> Array:
    powers = np.exp(z - z.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def test_gltr_equals_the_paper() -> None:
    module = GlobalLocalTemporal(4, branches=2, reduction=4)
    w, x = lively(module), draw(2, 7, 4)
    frames = x.numpy()
    local = np.zeros((2, 7, 8))
    for branch in range(2):
        kernel, bias = w[f"pyramid.{branch}.weight"][:, :, 0], w[f"pyramid.{branch}.bias"]
        for t in range(7):
            total = np.tile(bias, (2, 1))
            for tap in range(3):
                at = t + (tap - 1) * 2**branch
                if 0 <= at < 7:
                    total = total + frames[:, at] @ kernel[:, :, tap].T
            local[:, t, 4 * branch : 4 * branch + 4] = np.maximum(total, 0.0)
    q, k, v = (
        local @ w[f"{key}.weight"][:, :, 0, 0].T + w[f"{key}.bias"] for key in ("query", "key", "value")
    )
    mixed = np.stack([softmax(q[n] @ k[n].T, 1) @ v[n] for n in range(2)])
    expected = local + mixed @ w["project.weight"][:, :, 0, 0].T + w["project.bias"]
    assert error(module(x), expected) < 1e-12


def test_tam_equals_the_paper() -> None:
    module = TemporalAdaptive(4, 5)
    w, x = lively(module), draw(2, 5, 4, 3, 2)
    clip, means = x.numpy(), x.numpy().mean(axis=(3, 4))  # means (N, T, C)
    rows = means.transpose(0, 2, 1)[:, :, None]
    hidden = np.maximum(norm(convolve(rows, w["local.0.weight"], padding=(0, 1)), w, "local.1"), 0.0)
    gate = sigmoid(convolve(hidden, w["local.3.weight"]))[:, :, 0]  # (N, C, T)
    kernels = np.zeros((2, 4, 3))
    for c in range(4):
        wide = norm((means[:, :, c] @ w["kernel.0.weight"][:, :, 0, 0].T)[:, :, None, None], w, "kernel.1")
        kernels[:, c] = softmax(np.maximum(wide[:, :, 0, 0], 0.0) @ w["kernel.3.weight"][:, :, 0, 0].T, 1)
    expected = np.zeros_like(clip)
    for n in range(2):
        for c in range(4):
            for t in range(5):
                for tap in range(3):
                    at = t + tap - 1
                    if 0 <= at < 5:
                        expected[n, t, c] += kernels[n, c, tap] * clip[n, at, c] * gate[n, c, at]
    assert error(module(x), expected) < 1e-12


@pytest.mark.parametrize("padded", [True, False])
def test_gated_tcn_equals_the_paper_and_sees_no_future(padded: bool) -> None:
    module = GatedTemporalConvolution(3, 8, dilation=2, padded=padded)
    w, x = lively(module), draw(2, 3, 2, 16)

    def inception(key: str) -> Array:
        out = np.zeros((2, 8, 2, 16))
        for branch, size in enumerate((2, 3, 6, 7)):
            kernel, bias = w[f"{key}.convs.{branch}.weight"][:, :, 0], w[f"{key}.convs.{branch}.bias"]
            for t in range(16):
                total = np.zeros((2, 2, 2)) + bias[None, :, None]
                for tap in range(size):
                    at = t - 2 * (size - 1 - tap)
                    if at >= 0:
                        total = total + np.einsum("oc,ncv->nov", kernel[:, :, tap], x.numpy()[:, :, :, at])
                out[:, 2 * branch : 2 * branch + 2, :, t] = total
        return out

    expected = np.tanh(inception("filter")) * sigmoid(inception("gate"))
    assert error(module(x), expected if padded else expected[:, :, :, 12:]) < 1e-12
    later = x.clone()
    later[:, :, :, 14:] += 1.0
    kept = 14 if padded else 2
    assert torch.equal(module(later)[:, :, :, :kept], module(x)[:, :, :, :kept])


@pytest.mark.parametrize("iterative", [False, True])
def test_aff_equals_the_paper(iterative: bool) -> None:
    module = AttentionalFusion(8, iterative=iterative)
    w, x, y = lively(module), draw(2, 8, 3, 4), draw(2, 8, 3, 4, seed=2)

    def context(s: Array, key: str, first: int) -> Array:
        def point(z: Array, index: int) -> Array:
            weight = w[f"{key}.{first + index}.weight"][:, :, 0, 0]
            return np.einsum("oc,nchw->nohw", weight, z) + w[f"{key}.{first + index}.bias"][:, None, None]

        hidden = np.maximum(norm(point(s, 0), w, f"{key}.{first + 1}"), 0.0)
        return norm(point(hidden, 3), w, f"{key}.{first + 4}")

    def fuse(s: Array, key: str) -> Array:
        everywhere = context(s.mean(axis=(2, 3), keepdims=True), f"{key}.global_context", 1)
        share = sigmoid(context(s, f"{key}.local_context", 0) + everywhere)
        return x.numpy() * share + y.numpy() * (1.0 - share)

    s = x.numpy() + y.numpy()
    assert error(module(x, y), fuse(fuse(s, "first") if iterative else s, "last")) < 1e-12


def _enlarge(x: Array, height: int, width: int) -> Array:
    out = np.zeros((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            out[:, :, i, j] = x[:, :, i * x.shape[2] // height, j * x.shape[3] // width]
    return out


def _pyramid(maps: list[Array], w: dict[str, Array], prefix: str = "") -> list[Array]:
    def conv(x: Array, key: str) -> Array:
        weight = w[f"{prefix}{key}.weight"]
        half = weight.shape[-1] // 2
        return convolve(x, weight, w[f"{prefix}{key}.bias"], padding=(half, half))

    sums = [conv(item, f"lateral.{i}") for i, item in enumerate(maps)]
    for i in range(len(sums) - 2, -1, -1):
        sums[i] = sums[i] + _enlarge(sums[i + 1], *sums[i].shape[2:])
    return [conv(item, f"output.{i}") for i, item in enumerate(sums)]


def _levels(channels: tuple[int, ...], size: tuple[int, int] = (7, 6)) -> list[torch.Tensor]:
    maps = []
    for level, count in enumerate(channels):
        maps.append(draw(2, count, *size, seed=level))
        size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    return maps


def test_fpn_equals_the_paper() -> None:
    module = FeaturePyramid((3, 4, 5), 6, extra_levels=2)
    w, maps = lively(module), _levels((3, 4, 5))
    expected = _pyramid([item.numpy() for item in maps], w)
    for index in range(2):
        source = np.maximum(expected[-1], 0.0) if index else expected[-1]
        kernel, bias = w[f"extra.{index}.weight"], w[f"extra.{index}.bias"]
        expected.append(convolve(source, kernel, bias, stride=2, padding=(1, 1)))
    got = module(maps)
    assert len(got) == 5
    assert max(error(a, b) for a, b in zip(got, expected, strict=True)) < 1e-11


def test_panet_equals_the_paper() -> None:
    module = PathAggregation((3, 4, 5), 4)
    w, maps = lively(module), _levels((3, 4, 5))
    expected = _pyramid([item.numpy() for item in maps], w, "fpn.")
    for i in range(1, 3):
        down = convolve(
            expected[i - 1], w[f"down.{i - 1}.weight"], w[f"down.{i - 1}.bias"], stride=2, padding=(1, 1)
        )
        total = expected[i] + np.maximum(down, 0.0)
        merged = convolve(total, w[f"merge.{i - 1}.weight"], w[f"merge.{i - 1}.bias"], padding=(1, 1))
        expected[i] = np.maximum(merged, 0.0)
    assert max(error(a, b) for a, b in zip(module(maps), expected, strict=True)) < 1e-11


@pytest.mark.parametrize("level", [0, 1, 2])
def test_asff_equals_the_paper(level: int) -> None:
    channels = (3, 4, 5)
    module = AdaptiveSpatialFusion(channels, level, squeezed=2)
    w, maps = lively(module), _levels(channels)
    size = maps[level].shape[2:]
    alike = []
    for index, item in enumerate(maps):
        x = item.numpy()
        if index > level:
            x = _enlarge(conv_bn(x, w, f"resize.{index}"), *size)
        elif index == level - 1:
            x = conv_bn(x, w, f"resize.{index}", stride=2, padding=(1, 1))
        elif index == level - 2:
            padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
            rows, columns = maps[level - 1].shape[2:]
            pooled = np.stack(
                [
                    np.stack(
                        [
                            padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max(axis=(2, 3))
                            for j in range(columns)
                        ],
                        -1,
                    )
                    for i in range(rows)
                ],
                -2,
            )
            y = convolve(pooled, w[f"resize.{index}.1.weight"], stride=2, padding=(1, 1))
            x = norm(y, w, f"resize.{index}.2")
        alike.append(x)
    parts = [conv_bn(x, w, f"compress.{i}") for i, x in enumerate(alike)]
    shares = softmax(convolve(np.concatenate(parts, axis=1), w["weigh.weight"], w["weigh.bias"]), 1)
    fused = sum(x * shares[:, i : i + 1] for i, x in enumerate(alike))
    expected = np.clip(conv_bn(fused, w, "expand", padding=(1, 1)), 0.0, 6.0)
    assert error(module(maps), expected) < 1e-11


def _cosines(features: Array, prototypes: Array) -> Array:
    out = np.zeros((features.shape[0], prototypes.shape[1], *features.shape[2:]))
    for n in range(features.shape[0]):
        for k, prototype in enumerate(prototypes[n]):
            for i in range(features.shape[2]):
                for j in range(features.shape[3]):
                    v = features[n, :, i, j]
                    out[n, k, i, j] = 20.0 * (v @ prototype) / (np.linalg.norm(v) * np.linalg.norm(prototype))
    return out


def test_prototypes_equal_the_paper_and_their_head() -> None:
    module = PrototypeAlignment()
    support, query = draw(2, 6, 3, 4), draw(2, 6, 3, 4, seed=2)
    masks = torch.zeros(2, 2, 3, 4, dtype=torch.float64)
    masks[:, 0, 0], masks[:, 1, 2, :2] = 1.0, 1.0
    prototypes = np.zeros((2, 3, 6))
    for n in range(2):
        inside = [~(masks[n].numpy().any(axis=0)), masks[n, 0].numpy() > 0, masks[n, 1].numpy() > 0]
        for k, where in enumerate(inside):
            prototypes[n, k] = support.numpy()[n][:, where].sum(axis=1) / (where.sum() + 1e-5)
    expected = _cosines(query.numpy(), prototypes)
    assert error(module(support, masks, query), expected) < 1e-10
    head = PrototypeHead(torch.from_numpy(prototypes[0])).double()
    assert error(head(query[:1]), expected[:1]) < 1e-5  # made in float32
    # A query that holds what its support holds, elsewhere, is aligned; noise is not.
    clear = torch.cat([masks, 1.0 - masks.amax(1, keepdim=True)], dim=1) + 0.01
    aligned, other = (
        module.alignment_loss(clear, masks, clear.flip(2)),
        module.alignment_loss(clear, masks, draw(2, 3, 3, 4, seed=3)),
    )
    assert float(aligned) < 0.01 < float(other)


def test_info_nce_equals_the_paper() -> None:
    first, second = draw(4, 5), draw(4, 5, seed=2)
    both = np.concatenate([first.numpy(), second.numpy()])
    total = 0.0
    for i in range(8):
        cosines = [both[i] @ other / np.linalg.norm(both[i]) / np.linalg.norm(other) / 0.2 for other in both]
        against = sum(np.exp(value) for j, value in enumerate(cosines) if j != i)
        total -= np.log(np.exp(cosines[(i + 4) % 8]) / against)
    assert abs(float(InfoNce(temperature=0.2)(first, second)) - total / 8) < 1e-12
    assert float(InfoNce()(first, first)) < float(InfoNce()(first, second))


@pytest.mark.parametrize("kind", KINDS)
def test_example_works_trains_and_restores(kind: str) -> None:
    example = make_example(kind)
    module, inputs = example.module, example.inputs

    def run(network: torch.nn.Module) -> list[torch.Tensor]:
        result = network(*inputs)
        return list(result) if isinstance(result, list) else [result]

    module.eval()
    outputs = run(module)
    assert all(torch.equal(a, b) for a, b in zip(outputs, run(module), strict=True))
    assert all(item.dtype == torch.float32 for item in outputs)
    module.train()
    image = torch.randn(2, *example.input_shape[1:])
    network = example.network.train()
    network(image).square().sum().backward()
    idle = [
        name
        for name, p in network.named_parameters()
        if p.grad is None and p.requires_grad and "features" not in name
    ]
    assert not idle
    network.eval()
    twin = make_example(kind, seed=3).network.eval()
    twin.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(twin(image), network(image))
    assert network(image[:1]).shape[0] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_is_no_map_and_has_a_reason_for_no_edge_form(kind: str) -> None:
    info = attentions.get(kind)
    assert info.no_edge_form_reason
    assert not info.edge_forms
    with pytest.raises(RecipeError, match="made from its class"):
        create_attention(kind, 8)
    with pytest.raises(RecipeError, match=f"{kind!r} cannot be inserted: it is of the contract"):
        insert_attention(create_model("mobilenet_v2", num_classes=2, width=0.35), kind)
    with pytest.raises(TypeError):
        mechanism_class(kind)(no_such_option=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GlobalLocalTemporal(5), "must divide 15 joined channels"),
        (lambda: TemporalAdaptive(4, 0), "frames must be positive"),
        (lambda: TemporalAdaptive(4, 4, kernel_size=2), "must be odd"),
        (lambda: GatedTemporalConvolution(4, 6), "multiple of 4, got 6"),
        (lambda: AttentionalFusion(4, reduction=0), "reduction must be positive"),
        (lambda: FeaturePyramid((4,)), "at least 2 levels"),
        (lambda: FeaturePyramid((4, 4), extra_levels=3), "must be 0, 1 or 2"),
        (lambda: AdaptiveSpatialFusion((4, 4, 4), 3), "into level 0, 1 or 2"),
        (lambda: PrototypeAlignment(alpha=0.0), "alpha of proto_align must be positive"),
        (lambda: InfoNce(temperature=-1.0), "must be positive"),
    ],
)
def test_bad_options_are_named(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: GlobalLocalTemporal(8)(torch.zeros(2, 8, 5)), r"takes \(N, T, 8\)"),
        (lambda: TemporalAdaptive(4, 4)(torch.zeros(1, 3, 4, 2, 2)), r"takes \(N, 4, 4, H, W\)"),
        (lambda: GatedTemporalConvolution(4, 4)(torch.zeros(1, 3, 2, 9)), r"takes \(N, 4, V, T\)"),
        (
            lambda: GatedTemporalConvolution(4, 4, padded=False)(torch.zeros(1, 4, 2, 6)),
            "more than 6 steps, got 6",
        ),
        (lambda: AttentionalFusion(4)(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 3)), "of one shape"),
        (lambda: FeaturePyramid((4, 4))([torch.zeros(1, 4, 4, 4)] * 2), "half as large"),
        (lambda: PathAggregation((4, 4))([torch.zeros(1, 4, 4, 4)]), "half as large"),
        (
            lambda: PrototypeAlignment().prototypes(torch.zeros(1, 4, 4, 4), torch.zeros(1, 1, 2, 2)),
            "do not cover features",
        ),
        (lambda: InfoNce()(torch.zeros(1, 4), torch.zeros(1, 4)), "N of at least 2"),
    ],
)
def test_bad_inputs_are_named(run: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        run()
