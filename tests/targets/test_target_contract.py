"""What every target promises, checked on every registered target with its real runtime."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeattn.artifact import OnnxArtifact
from edgeattn.errors import ArtifactError, ModelError, RecipeError, TargetUnavailable
from edgeattn.targets import (
    Engine,
    Session,
    Target,
    TimingPlan,
    get_target,
    load_engine,
    save_engine,
    targets,
)
from edgeattn.targets.base import session_properties

Build = Callable[..., Engine]
QUICK = TimingPlan(warmup_runs=1, min_runs=3, min_seconds=5.0)

# Targets that load a Python package into this process. The others have contracts of their own: what they
# start is another process, or lies on another machine.
IN_PROCESS = tuple(name for name in targets.names() if hasattr(get_target(name), "package"))

every_target = pytest.mark.parametrize("name", IN_PROCESS)


def runnable(name: str) -> Target:
    target = get_target(name)
    availability = target.probe()
    if not availability.can_run:
        pytest.skip(f"{name} cannot run here: {availability.reason}")
    return target


@pytest.mark.parametrize("name", targets.names())
def test_probe_says_what_is_missing_and_how_to_get_it(name: str) -> None:
    target = get_target(name)
    assert isinstance(target, Target)
    assert target.name == name
    assert target.profile in ("u8", "s8")
    availability = target.probe()
    if availability.can_build:
        assert availability.version
    if not (availability.can_build and availability.can_run):
        assert availability.reason


@every_target
def test_an_absent_runtime_is_reported_and_refused_with_the_install_command(
    name: str, artifacts: dict[str, OnnxArtifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = get_target(name)
    if name == "reference":
        pytest.skip("reference needs nothing that could be absent: NumPy and onnx come with edgeattn")
    # None in sys.modules makes any import of that name fail, as if it were not installed.
    monkeypatch.setitem(sys.modules, target.package, None)  # type: ignore[attr-defined]
    availability = target.probe()
    assert (availability.can_build, availability.can_run) == (False, False)
    assert availability.install.startswith("pip install 'edgeattn[")
    with pytest.raises(TargetUnavailable, match="pip install") as caught:
        target.build(artifacts[target.profile], tmp_path)
    assert caught.value.exit_code == 3
    assert not list(tmp_path.iterdir())


@every_target
def test_a_runtime_that_breaks_while_loading_is_reported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = get_target(name).package  # type: ignore[attr-defined]
    (tmp_path / f"{package}.py").write_text("raise OSError('bad ELF header')")
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "bad ELF header" in get_target(name).probe().reason


@every_target
@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_build_describes_the_engine(name: str, precision: str, build: Build) -> None:
    engine = build(name, precision)
    assert engine.target == name
    assert engine.precision == precision
    assert engine.path.is_file()
    assert engine.size_bytes >= engine.path.stat().st_size
    assert engine.details["int8_convolutions"] == (2 if precision == "int8" else 0)
    assert engine.details["float_convolutions"] == (0 if precision == "int8" else 2)
    assert engine.details["kernels"] >= 2
    json.dumps(dict(engine.details), allow_nan=False)


@every_target
def test_build_leaves_nothing_but_the_engine(
    name: str, artifacts: dict[str, OnnxArtifact], tmp_path: Path
) -> None:
    target = get_target(name)
    if not target.probe().can_build:
        pytest.skip(f"{name} cannot build here: {target.probe().reason}")
    engine = target.build(artifacts[target.profile], tmp_path / "out")
    names = {engine.path.name, *engine.details.get("side_files", {})}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


@every_target
def test_build_refuses_a_model_that_changed(
    name: str, artifacts: dict[str, OnnxArtifact], tmp_path: Path
) -> None:
    target = get_target(name)
    if not target.probe().can_build:
        pytest.skip(f"{name} cannot build here: {target.probe().reason}")
    with pytest.raises(ArtifactError, match="was changed"):
        target.build(dataclasses.replace(artifacts[target.profile], sha256="0" * 64), tmp_path)


@every_target
def test_build_refuses_what_is_no_model(
    name: str, artifacts: dict[str, OnnxArtifact], tmp_path: Path
) -> None:
    target = get_target(name)
    if not target.probe().can_build:
        pytest.skip(f"{name} cannot build here: {target.probe().reason}")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    artifact = dataclasses.replace(artifacts[target.profile], path=broken, sha256=_sha256(b"not a model"))
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        target.build(artifact, tmp_path / "out")


@every_target
def test_infer_agrees_with_float(name: str, build: Build, images: NDArray[np.float32]) -> None:
    target = runnable(name)
    outputs = {}
    for precision in ("fp32", "int8"):
        with target.open(build(name, precision)) as session:
            assert isinstance(session, Session)
            first = session.infer({"input": images})["logits"]
            second = session.infer({"input": -images})["logits"]
            assert first.shape == (1, 16)
            assert not np.array_equal(first, second)
            # The first result must not have been written over by the second run.
            np.testing.assert_array_equal(first, session.infer({"input": images})["logits"])
        outputs[precision] = first
    np.testing.assert_allclose(outputs["int8"], outputs["fp32"], atol=0.05)


@every_target
def test_time_counts_as_the_plan_says(name: str, build: Build, images: NDArray[np.float32]) -> None:
    with runnable(name).open(build(name)) as session:
        samples = session.time({"input": images}, QUICK)
        assert len(samples) == QUICK.min_runs
        assert {type(sample) for sample in samples} == {int}
        assert min(samples) > 0
        properties = session_properties(session)
        assert properties["threads"] == 1
        assert properties["clock"]
        json.dumps(properties, allow_nan=False)


@every_target
def test_time_refuses_another_number_of_threads(name: str, build: Build, images: NDArray[np.float32]) -> None:
    with runnable(name).open(build(name)) as session, pytest.raises(RecipeError, match="threads=2"):
        session.time({"input": images}, dataclasses.replace(QUICK, threads=2))


@every_target
def test_layer_times_name_what_ran(name: str, build: Build, images: NDArray[np.float32]) -> None:
    with runnable(name).open(build(name)) as session:
        layers = session.layer_times({"input": images}, runs=8)
    assert layers
    assert all(layer.latency_us >= 0 for layer in layers)
    assert len({layer.name for layer in layers}) == len(layers)
    if name != "tensorrt":
        convolutions = [
            layer for layer in layers if "conv" in layer.kind.lower() or "conv" in layer.name.lower()
        ]
        assert len(convolutions) >= 2


@every_target
@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"input": np.zeros((1, 3, 9, 8), np.float32)}, r"shape \(1, 3, 9, 8\)"),
        ({"input": np.zeros((2, 3, 8, 8), np.float32)}, r"built for \(1, 3, 8, 8\)"),
        ({"input": np.zeros((1, 3, 8, 8), np.float64)}, "element type float64"),
        ({"picture": np.zeros((1, 3, 8, 8), np.float32)}, "picture"),
        ({}, "input"),
        ({"input": [[0.0]]}, "list"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(
    name: str, build: Build, feeds: dict[str, NDArray[np.float32]], message: str
) -> None:
    with runnable(name).open(build(name)) as session:
        for call in (session.infer, lambda fed: session.time(fed, QUICK), session.layer_times):
            with pytest.raises(ModelError, match=message):
                call(feeds)


@every_target
def test_a_closed_engine_says_so(name: str, build: Build, images: NDArray[np.float32]) -> None:
    with runnable(name).open(build(name)) as session:
        pass
    for call in (session.infer, lambda fed: session.time(fed, QUICK), session.layer_times):
        with pytest.raises(ModelError, match="is closed"):
            call({"input": images})


@every_target
def test_engines_that_changed_are_not_opened(
    name: str, artifacts: dict[str, OnnxArtifact], tmp_path: Path
) -> None:
    target = get_target(name)
    if not target.probe().can_build:
        pytest.skip(f"{name} cannot build here: {target.probe().reason}")
    engine = target.build(artifacts[target.profile], tmp_path)
    save_engine(engine)
    for file_name in (engine.path.name, *engine.details.get("side_files", {})):
        path = tmp_path / file_name
        original = path.read_bytes()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        with pytest.raises(ArtifactError, match="was changed"), target.open(engine):
            pass
        with pytest.raises(ArtifactError, match="was changed"):
            load_engine(engine.path)
        path.write_bytes(original)
    assert load_engine(engine.path) == engine


@every_target
def test_another_targets_engine_is_refused(name: str, build: Build) -> None:
    target = get_target(name)
    foreign = dataclasses.replace(build(name), target="someone-else")
    with pytest.raises(ModelError, match="someone-else"), target.open(foreign):
        pass


@every_target
@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_are_a_positive_whole_number(name: str, threads: int, build: Build) -> None:
    with pytest.raises(RecipeError, match="threads"), get_target(name).open(build(name), threads=threads):
        pass


@every_target
def test_an_engine_that_cannot_run_here_says_why(name: str, build: Build) -> None:
    target, engine = get_target(name), build(name)
    availability = target.probe()
    if availability.can_run:
        pytest.skip(f"{name} runs here")
    with pytest.raises(TargetUnavailable, match="cannot run here"), target.open(engine):
        pass


@every_target
def test_two_engines_of_one_target_are_open_at_once(
    name: str, build: Build, images: NDArray[np.float32]
) -> None:
    target = runnable(name)
    with target.open(build(name)) as int8, target.open(build(name, "fp32")) as fp32:
        a = int8.infer({"input": images})["logits"]
        b = fp32.infer({"input": images})["logits"]
        np.testing.assert_array_equal(a, int8.infer({"input": images})["logits"])
        assert not np.array_equal(a, b)


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()
