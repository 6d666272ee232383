"""The networks: sizes, keys, options, and that the ImageNet weights classify."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from attention_kinds import RECIPE_KINDS
from PIL import Image

from edgeattn.errors import RecipeError
from edgeattn.models import (
    architectures,
    count_macs,
    count_parameters,
    create_model,
    insert_attention,
    load_weights,
    to_edge_form,
)


def data_folder() -> Path:
    folder = os.environ.get("EDGEATTN_DATA")
    if not folder or not (Path(folder) / "mobilenet_v2_imagenet.safetensors").is_file():
        pytest.skip("EDGEATTN_DATA does not name a folder with mobilenet_v2_imagenet.safetensors")
    return Path(folder)


@pytest.mark.parametrize(
    ("arch", "parameters", "macs"),
    [
        ("mobilenet_v2", 3_504_872, 300_774_272),
        ("efficientnet_b0", 5_288_548, None),
        ("efficientnet_lite0", 4_652_008, None),
    ],
)
def test_sizes_are_the_published_ones(arch: str, parameters: int, macs: int | None) -> None:
    model = create_model(arch, num_classes=1000)
    assert count_parameters(model) == parameters
    if macs is not None:
        assert count_macs(model, (1, 3, 224, 224)) == macs


def test_macs_count_the_edge_form_too() -> None:
    model = insert_attention(create_model("mobilenet_v2", num_classes=10, width=0.25), "coord")
    # The squeeze runs on the same H + W positions in both forms.
    edge = to_edge_form(model, 64, 64)
    assert count_macs(edge, (1, 3, 64, 64)) == count_macs(model, (1, 3, 64, 64))


@pytest.mark.parametrize("arch", architectures.names())
def test_keys_are_torchvisions(arch: str) -> None:
    keys = set(create_model(arch, num_classes=7).state_dict())
    common = {"features.0.0.weight", "features.0.1.running_var", "classifier.1.weight", "classifier.1.bias"}
    expected = {
        "mobilenet_v2": {
            "features.1.conv.0.0.weight", "features.1.conv.1.weight", "features.1.conv.2.bias",
            "features.17.conv.0.0.weight", "features.17.conv.1.1.weight", "features.17.conv.2.weight",
            "features.17.conv.3.running_mean", "features.18.0.weight", "features.18.1.num_batches_tracked",
        },
        "efficientnet_b0": {
            "features.1.0.block.0.0.weight", "features.1.0.block.1.fc1.weight", "features.1.0.block.1.fc2.bias",
            "features.1.0.block.2.0.weight", "features.2.0.block.0.0.weight", "features.2.1.block.2.fc1.bias",
            "features.7.0.block.3.1.weight", "features.8.0.weight",
        },
        "efficientnet_lite0": {
            "features.1.0.block.1.0.weight", "features.2.0.block.2.1.bias", "features.8.0.weight",
        },
    }[arch]  # fmt: skip
    assert common | expected <= keys
    counts = {"mobilenet_v2": 314, "efficientnet_b0": 360, "efficientnet_lite0": 296}
    assert len(keys) == counts[arch]


@pytest.mark.parametrize("arch", architectures.names())
def test_every_activation_and_width_runs(arch: str) -> None:
    for activation in (None, *architectures.get(arch).activations):
        model = create_model(arch, num_classes=4, width=0.35, activation=activation, dropout=0.0).eval()
        y = model(torch.randn(2, 3, 40, 56))
        assert y.shape == (2, 4)
        assert torch.isfinite(y).all()


def test_width_changes_the_channels() -> None:
    half = create_model("mobilenet_v2", num_classes=1000, width=0.5)
    assert count_parameters(half) == 1_968_680
    wide = create_model("mobilenet_v2", num_classes=1000, width=1.4)
    assert wide.state_dict()["classifier.1.weight"].shape == (1000, 1792)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("mobilenet_v3", {}, "Did you mean 'mobilenet_v2'"),
        ("mobilenet_v2", {"activation": "swish"}, "cannot be built with the activation 'swish'"),
        ("efficientnet_b0", {"activation": "hswish"}, "Did you mean 'h_swish'"),
        ("mobilenet_v2", {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ("mobilenet_v2", {"width": 0.0}, r"width must lie in \(0, 8\]"),
        ("mobilenet_v2", {"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
    ],
)
def test_bad_requests(arch: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        create_model(arch, **{"num_classes": 10, **options})  # type: ignore[arg-type]


def photographs(folder: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    with (folder / "imagenet-samples" / "labels.csv").open() as stream:
        rows = list(csv.reader(stream))
    rows = [row for row in rows if row[-1].strip().isdigit()][:: 600 // count][:count]
    images = []
    for row in rows:
        with Image.open(folder / "imagenet-samples" / row[0]) as image:
            rgb = image.convert("RGB")
        left, top = (rgb.width - 224) // 2, (rgb.height - 224) // 2
        pixels = np.asarray(rgb.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255
        pixels = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        images.append(torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1))
    return torch.stack(images), torch.tensor([int(row[-1]) for row in rows])


def test_imagenet_weights_classify() -> None:
    folder = data_folder()
    model = create_model("mobilenet_v2", num_classes=1000).eval()
    report = load_weights(model, folder / "mobilenet_v2_imagenet.safetensors", strict=True)
    assert len(report.loaded) == 262
    images, labels = photographs(folder, 12)
    with torch.no_grad():
        assert int((model(images).argmax(1) == labels).sum()) >= 7


@pytest.mark.parametrize("kind", RECIPE_KINDS)
def test_identity_start_does_not_move_a_trained_network(kind: str) -> None:
    folder = data_folder()
    model = create_model("mobilenet_v2", num_classes=1000).eval()
    load_weights(model, folder / "mobilenet_v2_imagenet.safetensors")
    images = photographs(folder, 1)[0][:, :, 40:136, 40:136]
    with torch.no_grad():
        expected = model(images)
        started = insert_attention(model, kind)
        assert float((started(images) - expected).detach().abs().max()) < 1e-5
        edge = to_edge_form(started, 96, 96)
        assert float((edge(images) - expected).detach().abs().max()) < 1e-4
        assert float((started(images) - expected).detach().abs().max()) < 1e-4
