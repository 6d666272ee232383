"""Loading and saving weights: layouts, damage, and what is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from network_replicas import (
    CoordLayer,
    EcaLayer,
    ReplicaMobileNetV2,
    TimmInverted,
    TripletLayer,
    network_of,
    randomize,
)
from safetensors.torch import save_file
from torch import nn

from edgeattn.attention import create_attention
from edgeattn.errors import ModelError
from edgeattn.models import create_model, insert_attention, load_weights, save_weights

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def small(classes: int = 5) -> nn.Module:
    return create_model("mobilenet_v2", num_classes=classes, width=0.25).eval()


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code from a checkpoint ran",))


# ------------------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize(
    ("kind", "layer", "flat", "options", "layout"),
    [
        ("coord", CoordLayer, True, {}, "flattened"),
        ("eca", EcaLayer, False, {"kernel_size": "repository"}, "indexed"),
        ("triplet", TripletLayer, False, {}, "indexed"),
    ],
)
def test_authors_checkpoints_load(
    kind: str, layer: type[nn.Module], flat: bool, options: dict[str, Any], layout: str, tmp_path: Path
) -> None:
    """Weights in the authors' layout give the authors' outputs, even into a network that began as identity."""
    theirs = randomize(ReplicaMobileNetV2(layer, flat=flat))
    keys = {
        "coord": "features.17.conv.6.conv3.bias",
        "eca": "features.1.conv.3.conv.weight",
        "triplet": "features.17.conv.4.SpatialGate.spatial.bn.running_var",
    }
    assert keys[kind] in theirs.state_dict()
    path = tmp_path / "authors.pth"
    # As a training script leaves it: wrapped, and from DataParallel.
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}, "epoch": 3}, path)
    ours = insert_attention(create_model("mobilenet_v2", num_classes=10), kind, **options).eval()
    report = load_weights(ours, path, strict=True)
    assert report.layout == layout
    assert report.complete
    with torch.no_grad():
        assert float((ours(X) - theirs(X)).detach().abs().max()) < 1e-5


def test_bare_weights_load_into_a_network_with_attention(tmp_path: Path) -> None:
    theirs = randomize(ReplicaMobileNetV2())
    save_file(theirs.state_dict(), tmp_path / "bare.safetensors")
    for kind in ("coord", "eca", "triplet"):
        ours = insert_attention(create_model("mobilenet_v2", num_classes=10), kind).eval()
        report = load_weights(ours, tmp_path / "bare.safetensors")
        assert report.layout == "edgeattn"
        assert not report.unexpected
        assert report.missing and all("attention" in key for key in report.missing)
        # The gates are still the identity: the backbone's weights say nothing about them.
        with torch.no_grad():
            assert float((ours(X) - theirs(X)).detach().abs().max()) < 1e-5


def test_stand_alone_key_of_coordinate_attention(tmp_path: Path) -> None:
    source = create_attention("coord", 16)
    renamed = {
        k.replace("conv2", "conv_h").replace("conv3", "conv_w"): v for k, v in source.state_dict().items()
    }
    save_file(renamed, tmp_path / "coordatt.safetensors")
    target = create_attention("coord", 16)
    load_weights(target, tmp_path / "coordatt.safetensors", strict=True)
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())


def test_timm_weights_load_after_insertion(tmp_path: Path) -> None:
    model = randomize(network_of(TimmInverted(8, 8, se=True), channels=8))
    save_file(model.state_dict(), tmp_path / "timm.safetensors")
    other = insert_attention(network_of(TimmInverted(8, 8, se=True), channels=8), "coord").eval()
    report = load_weights(other, tmp_path / "timm.safetensors")
    assert report.layout == "bare"
    assert torch.equal(other(X), model(X))


def test_gain_survives_a_round_trip(tmp_path: Path) -> None:
    model = randomize(insert_attention(small(), "coord"))
    path = save_weights(model, tmp_path / "w.safetensors")
    other = insert_attention(small(), "coord", identity=False).eval()
    load_weights(other, path, strict=True)
    assert torch.equal(other(X), model(X))
    assert set(other.state_dict()) == set(model.state_dict())


# ------------------------------------------------------------------------------------------------ reports


def test_another_number_of_classes(tmp_path: Path) -> None:
    path = save_weights(randomize(small(7)), tmp_path / "w.safetensors")
    model = small(5)
    before = model.state_dict()["classifier.1.weight"].clone()
    report = load_weights(model, path)
    assert report.reinitialised == ("classifier.1.weight", "classifier.1.bias")
    assert not report.mismatched_shape and not report.missing
    assert torch.equal(model.state_dict()["classifier.1.weight"], before)
    assert "classifier left untrained (other classes): classifier.1.weight" in report.summary()
    with pytest.raises(ModelError, match="does not match MobileNetV2 exactly"):
        load_weights(model, path, strict=True)


def test_partial_and_surplus_weights_are_reported(tmp_path: Path) -> None:
    weights = dict(small().state_dict())
    del weights["features.0.0.weight"]
    weights["features.1.conv.1.weight"] = torch.zeros(3, 3, 1, 1)
    weights["teacher.weight"] = torch.zeros(2)
    save_file(weights, tmp_path / "w.safetensors")
    model = small()
    report = load_weights(model, tmp_path / "w.safetensors")
    assert report.missing == ("features.0.0.weight",)
    assert report.unexpected == ("teacher.weight",)
    assert report.mismatched_shape == (("features.1.conv.1.weight", (3, 3, 1, 1), (8, 8, 1, 1)),)
    for part in ("not in the file", "in the file only", "(3, 3, 1, 1) instead of (8, 8, 1, 1)"):
        assert part in report.summary()


def test_counters_may_be_absent(tmp_path: Path) -> None:
    weights = {k: v for k, v in small().state_dict().items() if "num_batches" not in k}
    save_file(weights, tmp_path / "w.safetensors")
    assert load_weights(small(), tmp_path / "w.safetensors", strict=True).complete


def test_half_precision_is_widened(tmp_path: Path) -> None:
    source = randomize(small())
    torch.save(source.half().state_dict(), tmp_path / "w.pt")
    model = small()
    load_weights(model, tmp_path / "w.pt", strict=True)
    assert all(p.dtype == torch.float32 for p in model.parameters())


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value: float, tmp_path: Path) -> None:
    weights = dict(small().state_dict())
    weights["features.2.conv.2.weight"] = torch.full_like(weights["features.2.conv.2.weight"], value)
    for name in ("w.safetensors", "w.pth"):
        save = save_file if name.endswith("safetensors") else torch.save
        save(weights, tmp_path / name)
        model = small()
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        with pytest.raises(ModelError, match=r"NaN or infinite values in features\.2\.conv\.2\.weight"):
            load_weights(model, tmp_path / name)
        assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("legacy", [False, True])
def test_files_with_code_are_refused(
    legacy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pth"
    content = {"state_dict": small().state_dict(), "extra": RunsCode()}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match="holds more than tensors: loading it would run code"):
        load_weights(small(), path)
    assert "ran" not in capsys.readouterr().out


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="holds more than tensors"):
        load_weights(small(), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "legacy.pth"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_truncated_files(name: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / name
    weights = small().state_dict()
    if name.endswith("safetensors"):
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=name == "w.pth")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match="may be cut short"):
        load_weights(small(), path)


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no weights file"):
        load_weights(small(), tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="holds a list; expected a state dict"):
        load_weights(small(), tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ModelError, match="holds no tensors"):
        load_weights(small(), tmp_path / "empty.pth")
    save_file({"layer1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"Nothing in .*keys such as layer1\.weight"):
        load_weights(small(), tmp_path / "other.safetensors")


def test_saving_needs_the_right_suffix(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must end in \.safetensors"):
        save_weights(small(), tmp_path / "w.pth")
    assert list(tmp_path.iterdir()) == []
