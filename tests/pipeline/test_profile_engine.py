"""Profiles of real engines of a small network with attention."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from export_networks import SHAPE, make_edge, make_images
from typer.testing import CliRunner

from edgeattn import pipeline_profile
from edgeattn.artifact import OnnxArtifact
from edgeattn.cli import app
from edgeattn.errors import ArtifactError, EdgeAttnError, ModelError, RecipeError, TargetUnavailable
from edgeattn.export.artifacts import save_artifact
from edgeattn.export.float_onnx import export_float
from edgeattn.export.qdq import emit_qdq
from edgeattn.measure.peaks import Peaks
from edgeattn.measure.work import read_work
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_profile import EngineProfile, measure_peaks, profile_engine
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.gates import gate_regions
from edgeattn.quant.ptq import make_plan
from edgeattn.targets import get_target, load_engine, save_engine
from edgeattn.targets.base import Availability
from edgeattn.targets.ort_cpu import OrtCpu

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

TARGETS = ("ort-cpu", "openvino-cpu")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """INT8 engines beside their lowered file or with it in a folder, and the float ones."""
    folder = tmp_path_factory.mktemp("engines")
    edge = make_edge("coord")
    export = export_float(edge, SHAPE)
    plan = make_plan(
        export.model,
        make_images(2),
        PtqConfig(tuning_steps=0, bias_correction=False),
        gate_regions(edge, "int8"),
    )
    files = {
        "int8": save_artifact(emit_qdq(export.model, plan, "u8"), folder / "model.u8.onnx", "u8"),
        "fp32": save_artifact(export.model, folder / "model.fp32.onnx", "fp32"),
    }
    return {
        (name, precision): _build(name, artifact, folder / name / precision)
        for name in TARGETS
        for precision, artifact in files.items()
    }


def _build(name: str, artifact: OnnxArtifact, folder: Path) -> Path:
    lowered = folder / "lowered" if name == "openvino-cpu" else folder
    lowered.mkdir(parents=True)
    target = get_target(name)
    engine = target.build(target.lower(artifact, lowered), folder)
    save_engine(engine)
    return engine.path


@pytest.fixture(scope="module")
def profiles(engines: dict[tuple[str, str], Path]) -> dict[tuple[str, str], EngineProfile]:
    """Profiles of all four; the peaks, measured by other tests, are given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_profile, "measure_peaks", _given_peaks)
        return {key: profile_engine(path, runs=1) for key, path in engines.items()}


def _given_peaks(target: Any, precisions: list[str], threads: int, progress: Any) -> Peaks:
    return Peaks(threads, {"int8" if name == "int8" else "float": 1e11 for name in precisions}, 1e10)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("target", TARGETS)
def test_all_time_belongs_to_a_module(
    target: str, precision: str, profiles: dict[tuple[str, str], EngineProfile]
) -> None:
    """No operation is executed by two layers, and no layer is left over."""
    result = profiles[target, precision]
    profile = result.profile
    assert [layer.name for layer in profile.layers if not layer.module] == []
    assert "unattributed" not in {group.name for group in profile.categories}
    owned = [name for layer in profile.layers for name in layer.operations]
    assert len(owned) == len(set(owned))
    assert sum(layer.share for layer in profile.layers) == pytest.approx(1)
    assert len(result.attentions) == 7
    named = {group.name for group in profile.modules}
    assert set(result.attentions) <= named
    assert {"features/0", "features/2", "features/9", "classifier"} <= named
    assert not named & {"features", "features/2/conv"}


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_product_is_timed(
    target: str,
    precision: str,
    engines: dict[tuple[str, str], Path],
    profiles: dict[tuple[str, str], EngineProfile],
) -> None:
    """Outside attention: inside, where maps are 1x1, both branches are the same and a runtime keeps one."""
    lowered = pipeline_profile._lowered_file(load_engine(engines[target, precision]))
    operations = read_work(Graph(onnx.load(str(lowered)))).operations
    products = {name for name, found in operations.items() if found.macs and found.category != "attention"}
    layers = profiles[target, precision].profile.layers
    owned = [name for layer in layers for name in layer.operations]
    assert len(products) == 26
    assert products <= set(owned)
    assert sum(layer.macs for layer in layers) == sum(operations[name].macs for name in owned)


def test_every_convolution_is_compared_with_the_peak_of_its_type(
    profiles: dict[tuple[str, str], EngineProfile],
) -> None:
    for (_, precision), result in profiles.items():
        peaks = result.profile.peaks
        assert peaks is not None
        key = "int8" if precision == "int8" else "float"
        assert key in peaks.macs_per_second
        for layer in result.profile.layers:
            kind = "int8" if layer.dtype in ("int8", "uint8") else "float"
            assert layer.attainable_us == peaks.attainable_us(layer.macs, layer.bytes, kind)
        assert result.roofline == pytest.approx(result.profile.total.attainable_us / result.p50_ms / 1e3)


def test_peaks_are_rates_of_this_machine() -> None:
    """Slower than a tenth of a core of ten years ago, or faster than any core, is a wrong count."""
    peaks = measure_peaks(get_target("ort-cpu"), ["fp32"])
    assert 1e8 < peaks.macs_per_second["float"] < 1e13
    assert 1e8 < peaks.bytes_per_second < 1e13


def test_command_prints_and_draws(engines: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "time.svg"
    engine = str(engines["openvino-cpu", "int8"])
    arguments = ["profile", engine, "--runs", "1", "--layers", "5", "--picture", str(picture)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for expected in ("the 5 slowest of", "by module", "features/2/conv/attention", "pointwise convolution"):
        assert expected in result.stdout
    assert "INT8" in result.stdout and "GB/s, with 1 thread" in result.stdout
    assert "<svg" in picture.read_text(encoding="utf-8")
    assert str(picture) in result.stderr


def test_command_prints_json_only(engines: dict[tuple[str, str], Path]) -> None:
    result = CliRunner().invoke(
        app, ["profile", str(engines["ort-cpu", "int8"]), "--runs", "2", "--threads", "2", "--json"]
    )
    value = json.loads(result.stdout)
    assert (value["threads"], value["peaks"]["threads"], value["runs"]) == (2, 2, 2)
    assert sum(row["share"] for row in value["categories"]) == pytest.approx(1)
    assert {"layers", "modules", "total", "roofline", "p50_ms"} <= value.keys()


def _copy(engine: Path, folder: Path) -> Path:
    for source in engine.parent.glob(f"{engine.stem}*"):
        shutil.copy(source, folder)
    return folder / engine.name


def test_wrong_files_are_refused_with_what_is_missing(
    engines: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="not a file"):
        profile_engine(tmp_path / "nowhere.onnx")
    lone = _copy(engines["openvino-cpu", "int8"], tmp_path)
    with pytest.raises(ArtifactError, match=r"lowered ONNX file that .* was built from is neither"):
        profile_engine(lone)
    lone.with_name(f"{lone.name}.json").unlink()
    with pytest.raises(ArtifactError, match=r"no manifest .*int8\.xml\.json beside it"):
        profile_engine(lone)


def test_a_target_that_cannot_run_or_tell_says_so(
    engines: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines["ort-cpu", "int8"]
    with monkeypatch.context() as patch:
        patch.setattr("edgeattn.targets.ort_cpu._OrtSession.layer_times", lambda *_, **__: [])
        with pytest.raises(ModelError, match="does not report the times of layers"):
            profile_engine(engine, runs=1)
    monkeypatch.setattr(OrtCpu, "probe", lambda _: Availability(True, False, "No device.", "buy one"))
    with pytest.raises(TargetUnavailable, match=r"cannot run here.*No device"):
        profile_engine(engine)


def test_other_devices_have_no_roofline(
    engines: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine's cores say nothing about a GPU."""
    monkeypatch.setattr(pipeline_profile, "_ON_THIS_CPU", frozenset({"other-cpu"}))
    result = profile_engine(engines["ort-cpu", "int8"], runs=1)
    assert result.profile.peaks is None
    assert "other-cpu only" in result.no_roofline
    assert {layer.roofline for layer in result.profile.layers} == {None}


def test_another_program_spoils_one_round_only(
    engines: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeattn.targets import ort_cpu

    measured, calls = ort_cpu._OrtSession.layer_times, []

    def disturbed(self: Any, feeds: Any, runs: int) -> Any:
        calls.append(runs)
        times = measured(self, feeds, runs)
        return [dataclasses.replace(time, latency_us=1e9) for time in times] if len(calls) == 2 else times

    monkeypatch.setattr(ort_cpu._OrtSession, "layer_times", disturbed)
    monkeypatch.setattr(pipeline_profile, "_ON_THIS_CPU", frozenset())
    result = profile_engine(engines["ort-cpu", "int8"], runs=7)
    assert calls == [2, 2, 1, 1, 1]
    assert max(layer.latency_us for layer in result.profile.layers) < 1e8


def test_command_refuses_a_picture_before_it_measures() -> None:
    result = CliRunner().invoke(app, ["profile", "nowhere.onnx", "--picture", "time.jpeg"])
    assert result.exit_code == 2
    assert ".svg, .png, .pdf" in result.stderr


def test_error_of_a_peak_names_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise EdgeAttnError("no space")

    target = OrtCpu()
    monkeypatch.setattr(target, "build", fail)
    with pytest.raises(ModelError, match="The peak of ort-cpu cannot be measured: no space"):
        measure_peaks(target, ["int8"])


def test_help_has_examples_of_options_that_it_has() -> None:
    shown = CliRunner().invoke(app, ["profile", "--help"])
    assert shown.exit_code == 0
    options, _, lines = shown.output.partition("Examples:")
    assert "edgeattn profile" in lines
    assert all(word in options for word in lines.split() if word.startswith("--"))
