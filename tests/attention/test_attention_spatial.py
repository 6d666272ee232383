"""What is particular to one of the mechanisms over positions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cases_spatial import dcn as dcn_oracle
from cases_spatial import nonlocal_block, vit
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgeattn.attention import create_attention
from edgeattn.attention.dcn import DeformableConvolution
from edgeattn.attention.mhsa import MultiHeadSelfAttention
from edgeattn.attention.vit import VisionTransformer
from edgeattn.errors import ModelError, RecipeError


def randomized(module: Any, scale: float = 0.4) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module.double().eval()


def maps(channels: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)


def weights_of(module: torch.nn.Module) -> dict[str, Any]:
    return {key: value.numpy() for key, value in module.state_dict().items()}


# Kinds with a gradient through a softmax, a gather, a resampling or a variance.
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("sagan", {}),
        ("nonlocal", {}),
        ("mhsa", {"heads": 2}),
        ("axial", {"heads": 2}),
        ("cca", {}),
        ("psa", {"mask_size": 3}),
        ("external", {"memory": 3, "heads": 2}),
        ("cot", {"groups": 2, "share": 2}),
        ("vit", {"width": 4, "heads": 2}),
        ("vit", {"width": 4, "heads": 2, "over": "channels", "grid": 2}),
        ("danet", {}),
        ("simam", {}),
        ("scse", {"combine": "max"}),
        ("scse", {"combine": "product"}),
        ("gala", {}),
        ("bam", {"reduction": 2}),
        ("strip", {}),
        ("residual_attention", {}),
    ],
)
def test_gradient_is_the_finite_difference(kind: str, options: dict[str, Any]) -> None:
    module = randomized(create_attention(kind, 4, **options))
    x = maps(4, 3, 4).requires_grad_()
    direction, weight = torch.randn_like(x), torch.randn_like(x)
    (module(x) * weight).sum().backward()
    assert x.grad is not None
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (module(x + sign * step * direction) for sign in (1.0, -1.0))
    expected = float(((ahead - behind) * weight).sum()) / (2 * step)
    assert float((x.grad * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_nonlocal_pools_its_keys() -> None:
    module = randomized(create_attention("nonlocal", 6, subsample=True))
    x = maps(6, 5, 6)
    expected = nonlocal_block(x.numpy(), weights_of(module), {"subsample": True})
    assert np.abs(module(x).detach().numpy() - expected).max() < 1e-12
    for form in ("rows", "columns"):
        assert float((module.edge_form(5, 6, form)(x) - module(x)).detach().abs().max()) < 1e-9
    for make in (lambda: module(maps(6, 1, 6)), lambda: module.edge_form(6, 1)):
        with pytest.raises(ModelError, match="nonlocal needs maps of at least 2x2"):
            make()


def test_vit_cuts_patches() -> None:
    options = {"width": 8, "heads": 2, "patch_size": 2}
    module = randomized(VisionTransformer(3, **options))
    x = maps(3, 4, 6)
    assert np.abs(module(x).detach().numpy() - vit(x.numpy(), weights_of(module), options)).max() < 1e-12
    assert float((module.edge_form(4, 6)(x) - module(x)).detach().abs().max()) < 1e-9
    for make in (lambda: module(maps(3, 5, 6)), lambda: module.edge_form(4, 7)):
        with pytest.raises(ModelError, match="patches of 2x2"):
            make()


def test_mhsa_looks_only_where_the_mask_allows() -> None:
    module: MultiHeadSelfAttention = randomized(MultiHeadSelfAttention(4, heads=2))
    x = maps(4, 2, 3)
    y, weights = module.attend(x)
    assert torch.equal(y, module(x))
    assert weights.shape == (2, 2, 6, 6)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 2, 6).double())
    causal = torch.ones(6, 6).tril().bool()
    _, masked = module.attend(x, causal)
    assert float(masked[..., ~causal].detach().abs().max()) == 0.0
    later = x.clone()
    later[:, :, 1, 2] += 1.0
    # The last position is no key of the others.
    assert torch.equal(module.attend(x, causal)[0][:, :, 0], module.attend(later, causal)[0][:, :, 0])
    with pytest.raises(ModelError, match="without any key"):
        module.attend(x, torch.zeros(6, 6).bool())
    with pytest.raises(ModelError, match="must be bool"):
        module.attend(x, torch.zeros(6, 6))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mhsa", {"residual": False}, "residual=False passes none of its input on"),
        ("scse", {"combine": "product"}, "multiplies the map by itself"),
    ],
)
def test_no_identity_start_is_said(kind: str, options: dict[str, Any], message: str) -> None:
    module = create_attention(kind, 8, **options)
    with pytest.raises(RecipeError, match=message):
        module.start_as_identity()


def test_bam_dilates_by_four_as_in_the_paper() -> None:
    convs = [m for m in create_attention("bam", 32).modules() if isinstance(m, torch.nn.Conv2d)]
    assert [conv.dilation for conv in convs if conv.kernel_size == (3, 3)] == [(4, 4), (4, 4)]


def test_deformable_convolution_starts_as_the_plain_one() -> None:
    module = DeformableConvolution(4, 6).double()
    x = maps(4, 5, 6)
    plain = torch.nn.functional.conv2d(x, module.conv.weight, padding=1)
    assert float((module(x) - plain).detach().abs().max()) < 1e-12


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 2}])
def test_deformable_convolution_is_onnx_deform_conv(options: dict[str, int]) -> None:
    """ONNX's own operator (opset 19), which few runtimes have, computes the same."""
    module = randomized(DeformableConvolution(4, 6, **options))
    x = maps(4, 5, 6)
    predicted = module.conv_offset(x).detach().numpy().astype(np.float32)
    modulation = 2 / (1 + np.exp(-predicted[:, 18:]))
    stride = options.get("stride", 1)
    node = helper.make_node(
        "DeformConv",
        ["x", "w", "offset", "", "mask"],
        ["y"],
        kernel_shape=[3, 3],
        pads=[1, 1, 1, 1],
        strides=[stride, stride],
        group=options.get("groups", 1),
    )
    infos = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "w", "offset", "mask", "y")
    ]
    graph = helper.make_graph([node], "deform", infos[:-1], infos[-1:])
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)])
    feeds = {
        "x": x.numpy().astype(np.float32),
        "w": module.conv.weight.detach().numpy().astype(np.float32),
        "offset": predicted[:, :18],
        "mask": modulation.astype(np.float32),
    }
    (expected,) = ReferenceEvaluator(model).run(None, feeds)
    got = module(x).detach().numpy()
    assert np.abs(got - dcn_oracle(x.numpy(), weights_of(module), options)).max() < 1e-10
    assert np.abs(got - expected).max() < 1e-3 * math.ceil(float(np.abs(got).max()))


def test_simam_of_one_pixel_is_finite() -> None:
    module = create_attention("simam", 3).double()
    x = maps(3, 1, 1)
    assert torch.allclose(module(x), x * (1 / (1 + math.exp(-0.5))))
