"""`edgeattn parity` on a run's folder and on single files: what it compares, and what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from quant_networks import inverted_residual, pictures
from typer.testing import CliRunner

from edgeattn.cli import app
from edgeattn.errors import DataError, RecipeError
from edgeattn.export.qdq import emit_qdq
from edgeattn.measure.preprocessing import InputFinding
from edgeattn.pipeline_parity import parity_model
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.ptq import make_plan
from edgeattn.report import Fp32Result, Report, write_report
from edgeattn.targets import get_target

SAFE = PtqConfig(
    tuning_steps=0,
    bias_correction=False,
    nncf=False,
    importance=False,
    equalization=False,
    headroom="proven",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures of ten classes with labels.csv, as recipes read them."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    lines = ["file,class_index"]
    for index in range(20):
        pixels = random.integers(0, 256, (12 + index, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
        lines.append(f"{index:02}.png,{index % 10}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """What a run leaves: graphs and a report that names the data."""
    folder = tmp_path_factory.mktemp("run")
    model = inverted_residual()
    onnx.save(model, str(folder / "model.fp32.onnx"))
    plan = make_plan(model, pictures(8), SAFE)
    for profile in ("u8", "s8"):
        onnx.save(emit_qdq(model, plan, profile), str(folder / f"model.{profile}.onnx"))  # type: ignore[arg-type]
    data = {
        "kind": "labelled_files",
        "root": str(photos),
        "validation_share": 0.5,
        "preprocess": {"size": 8, "resize": None},
    }
    report = Report(
        recipe={"name": "small", "data": data}, fingerprint="0", verdict="pass", fp32=Fp32Result(n=10)
    )
    write_report(report, folder)
    return folder


@pytest.fixture(scope="module")
def result(run_folder: Path) -> dict[str, Any]:
    names = ["reference", "ort-cpu", "openvino-cpu", "jetson-ssh"]
    return parity_model(run_folder, names, layer_images=2)


def needs(*names: str) -> None:
    for name in names:
        if not get_target(name).probe().can_run:
            pytest.skip(f"{name} cannot run here")


def test_it_is_measured_on_what_the_run_did_not_see(result: dict[str, Any]) -> None:
    assert result["n"] == 10
    assert result["data"]["left_out"] == 10
    assert result["data"]["labelled"]
    assert result["data"]["preprocess"]["size"] == 8


def test_what_the_run_saw_is_taken_where_asked_for_behind_the_rest(run_folder: Path) -> None:
    for limit, seen in ((None, 10), (12, 2), (8, 0)):
        found = parity_model(run_folder, ["reference"], layer_images=0, limit=limit, with_seen=True)
        assert found["n"] == (limit or 20)
        assert (found["data"]["left_out"], found["data"]["seen"]) == (0, seen)


def test_every_target_says_how_it_did(result: dict[str, Any]) -> None:
    json.dumps(result, allow_nan=False)
    needs("ort-cpu", "openvino-cpu")
    for name in ("reference", "ort-cpu", "openvino-cpu"):
        entry = result["targets"][name]
        assert (entry["status"], entry["profile"], entry["n"]) == ("ok", "u8", 10)
        assert 0 <= entry["top1_interval"][0] <= entry["top1"] <= entry["top1_interval"][1] <= 1
        assert 0 <= entry["mcnemar_p"] <= 1
        assert entry["kl"] >= 0
        assert len(entry["layers"]["layers"]) >= 5
    assert set(result["between"]) == {
        "reference/ort-cpu",
        "reference/openvino-cpu",
        "ort-cpu/openvino-cpu",
    }
    assert "mcnemar_p" in result["between"]["ort-cpu/openvino-cpu"]


def test_an_absent_target_is_unavailable_with_the_reason(result: dict[str, Any]) -> None:
    entry = result["targets"]["jetson-ssh"]
    assert entry["status"] == "unavailable"
    assert entry["reason"]


def test_the_verdict_says_how_sure_it_is(result: dict[str, Any]) -> None:
    needs("ort-cpu", "openvino-cpu")
    layers = [reason for reason in result["verdict"]["reasons"] if reason["metric"] == "over_one_share"]
    assert len(layers) == 3
    assert all(reason["passed"] for reason in layers)
    pairs = [reason for reason in result["verdict"]["reasons"] if reason["metric"] == "agreement"]
    assert all("cannot tell with n = 10" in reason["text"] for reason in pairs)


def test_saturation_is_judged_for_every_layer(result: dict[str, Any]) -> None:
    proof = result["pair_saturation"]
    assert proof["layers_judged"] == 5  # stem, expand, project, last, head; not the depthwise one
    assert proof["can_saturate"] == proof["on_data"] == 0
    assert all(layer["unsafe_on_data"] == 0 for layer in proof["layers"])


def test_profiles_stand_side_by_side(run_folder: Path) -> None:
    found = parity_model(run_folder, ["reference"], profiles=["u8", "s8"], layer_images=0, limit=4)
    assert list(found["targets"]) == ["reference:u8", "reference:s8"]
    assert found["n"] == 4
    assert not found["between"]["reference:u8/reference:s8"]["same_profile"]
    assert "layers" not in found["targets"]["reference:u8"]
    with pytest.raises(RecipeError, match="no profile"):
        parity_model(run_folder, ["reference"], profiles=["u4"])


def test_a_profile_that_the_run_lacks_comes_with_what_would_bring_it(
    run_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run/model.s8.onnx").unlink()
    found = parity_model(tmp_path / "run", ["reference"], profiles=["s8"], layer_images=0, limit=2)
    reason = found["targets"]["reference"]["reason"]
    assert "the model has fp32, u8" in reason
    assert "s8 with tensorrt-rtx" in reason
    assert not found["verdict"]["passed"]


def test_the_reference_computes_otherwise_on_request(run_folder: Path) -> None:
    found = parity_model(run_folder, ["reference", "reference@vpmaddubsw"], layer_images=0, limit=2)
    # The weights of this run saturate nowhere.
    assert found["between"]["reference/reference@vpmaddubsw"]["identical"]
    with pytest.raises(RecipeError, match="half-away"):
        parity_model(run_folder, ["reference@fast"])


def test_arm64_runs_in_either_runtime(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the emulator, each is listed with what would help."""
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path))
    names = ["arm64", "arm64@openvino", "arm64@openvino-int8"]
    found = parity_model(run_folder, names, layer_images=0, limit=2)["targets"]
    assert [found[name]["status"] for name in names] == ["unavailable"] * 3
    with pytest.raises(RecipeError, match="openvino-int8"):
        parity_model(run_folder, ["arm64@tensorrt"])
    with pytest.raises(RecipeError, match="behind arm64@ there may be"):
        parity_model(run_folder, ["ort-cpu@openvino"])


def test_a_file_and_an_array_do_as_well(run_folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.concatenate(pictures(16)))
    found = parity_model(run_folder / "model.s8.onnx", ["reference"], tmp_path / "x.npy", layer_images=1)
    assert found["targets"]["reference"]["profile"] == "s8"
    assert found["fp32"]["top1"] is None
    with pytest.raises(DataError, match="--data"):
        parity_model(run_folder / "model.u8.onnx", ["reference"])


def test_a_folder_of_other_pictures_loses_those_that_the_run_saw(
    run_folder: Path, photos: Path, tmp_path: Path
) -> None:
    for index in range(20):
        (tmp_path / f"{index:02}.png").write_bytes((photos / f"{index:02}.png").read_bytes())
    found = parity_model(run_folder, ["reference"], tmp_path, layer_images=0)
    assert (found["n"], found["data"]["left_out"]) == (10, 10)
    assert not found["data"]["labelled"]


def test_inputs_of_a_device_are_compared(run_folder: Path, tmp_path: Path) -> None:
    from edgeattn.pipeline_parity_data import load_parity_data, load_run
    from edgeattn.progress import SilentProgress

    data = load_parity_data(load_run(run_folder), None, (1, 3, 8, 8), SilentProgress(), 4)
    np.save(tmp_path / "same.npy", data.tensors)
    np.save(tmp_path / "bgr.npy", np.ascontiguousarray(data.tensors[:, ::-1]))
    assert data.compare_with(tmp_path / "same.npy") == InputFinding(
        "equal", f"all {data.tensors.size} values are equal in every bit", 1.0, 0.0
    )
    assert data.compare_with(tmp_path / "bgr.npy").cause == "channel-order"
    with pytest.raises(DataError, match=r"npy array"):
        data.compare_with(tmp_path / "absent.npy")


def test_the_command_prints_tables_and_a_verdict(run_folder: Path) -> None:
    arguments = ["parity", str(run_folder), "--targets", "reference,ort-cpu", "--layer-images", "1"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    for part in ("reference", "McNemar p", "layers given the same inputs", "without VNNI"):
        assert part in shown.output
