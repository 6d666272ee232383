"""What is particular to one mechanism, and to their registry."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from edgeattn.attention import attention_options, attentions, create_attention
from edgeattn.attention.eca import EfficientChannelAttention, paper_kernel_size
from edgeattn.errors import RecipeError


def shapes(kind: str, channels: int, **options: Any) -> dict[str, tuple[int, ...]]:
    state = create_attention(kind, channels, **options).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if "num_batches" not in key}


def norm(prefix: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")}


def test_keys_are_the_authors() -> None:
    assert shapes("eca", 64) == {"conv.weight": (1, 1, 3)}
    assert shapes("coord", 384) == {
        "conv1.weight": (12, 384, 1, 1),
        "conv1.bias": (12,),
        **norm("bn1", 12),
        "conv2.weight": (384, 12, 1, 1),
        "conv2.bias": (384,),
        "conv3.weight": (384, 12, 1, 1),
        "conv3.bias": (384,),
    }
    triplet: dict[str, tuple[int, ...]] = {}
    for branch in ("cw", "hc", "hw"):
        triplet |= {f"{branch}.conv.conv.weight": (1, 2, 7, 7), **norm(f"{branch}.conv.bn", 1)}
    assert shapes("triplet", 24) == triplet
    assert shapes("se", 64) == {
        "fc1.weight": (8, 64, 1, 1),
        "fc1.bias": (8,),
        "fc2.weight": (64, 8, 1, 1),
        "fc2.bias": (64,),
    }
    assert shapes("cbam", 64) == {
        "ChannelGate.mlp.1.weight": (4, 64, 1, 1),
        "ChannelGate.mlp.1.bias": (4,),
        "ChannelGate.mlp.3.weight": (64, 4, 1, 1),
        "ChannelGate.mlp.3.bias": (64,),
        "SpatialGate.spatial.conv.weight": (1, 2, 7, 7),
        **norm("SpatialGate.spatial.bn", 1),
    }


def test_authors_linear_weights_of_cbam_load() -> None:
    source = create_attention("cbam", 32)
    linear = {key: value.squeeze() if value.dim() == 4 and "mlp" in key else value
              for key, value in source.state_dict().items()}  # fmt: skip
    target = create_attention("cbam", 32)
    target.load_state_dict(linear, strict=True)
    x = torch.randn(2, 32, 4, 4)
    assert torch.equal(target.eval()(x), source.eval()(x))


@pytest.mark.parametrize(
    ("channels", "expected"), [(1, 1), (16, 3), (64, 3), (96, 3), (128, 5), (320, 5), (512, 5)]
)
def test_eca_kernel_follows_the_paper(channels: int, expected: int) -> None:
    assert paper_kernel_size(channels) == expected
    assert EfficientChannelAttention(channels).conv.kernel_size == (expected,)


def test_eca_kernel_of_the_repository() -> None:
    sizes = [
        EfficientChannelAttention(c, kernel_size="repository").conv.kernel_size[0] for c in (64, 95, 96, 320)
    ]
    assert sizes == [1, 1, 3, 3]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("eca", {"kernel_size": 4}, "must be odd"),
        ("eca", {"kernel_size": "repo"}, "'paper' or 'repository', got 'repo'"),
        ("eca", {"kernel_size": True}, "positive odd number, got True"),
        ("triplet", {"kernel_size": 0}, "positive odd number, got 0"),
        ("coord", {"reduction": 0}, "reduction must be positive"),
        ("se", {"gate": "hard_sigmod"}, "Did you mean 'hard_sigmoid'"),
        ("se", {"squeeze_channels": 0}, "squeeze_channels must be positive"),
        ("cbam", {"reduction": -1}, "reduction must be positive"),
    ],
)
def test_bad_option_values(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        create_attention(kind, 16, **options)


def test_unknown_option_names_the_close_one() -> None:
    with pytest.raises(TypeError, match="Did you mean 'kernel_size'"):
        create_attention("triplet", 16, kernal_size=3)


def test_unknown_name_names_the_close_one() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'coord'"):
        create_attention("cord", 16)


def test_options_have_defaults() -> None:
    assert attention_options("triplet") == {"kernel_size": 7, "no_spatial": False}
    assert attention_options("coord") == {"reduction": 32}


def test_triplet_norms_have_the_authors_momentum() -> None:
    norms = [m for m in create_attention("triplet", 8).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [(n.momentum, n.eps) for n in norms] == [(0.01, 1e-5)] * 3


def test_listing_needs_no_torch() -> None:
    """The registry, and every fact in it, can be read where torch cannot be imported."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgeattn.attention import attentions, create_attention\n"
        "from edgeattn.errors import MissingExtraError\n"
        "import edgeattn.models as models\n"
        "print(*attentions.names(), *models.architectures.names())\n"
        "for use in (lambda: create_attention('eca', 8), lambda: models.create_model):\n"
        "    try: use()\n"
        "    except MissingExtraError as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].split() == [*attentions.names(), "mobilenet_v2", "efficientnet_b0", "efficientnet_lite0"]
    assert len([line for line in lines if "pip install 'edgeattn[torch]'" in line]) == 2
