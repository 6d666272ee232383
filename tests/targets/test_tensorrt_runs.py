"""Building, opening and running by both TensorRT recipes, with a stand-in for TensorRT and the driver."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_stand_in import DoublingContext, StandInDriver

from edgeattn.artifact import IoSpec, OnnxArtifact
from edgeattn.errors import ModelError, TargetUnavailable
from edgeattn.targets import Engine, TimingPlan, get_target
from edgeattn.targets import _trt as shared
from edgeattn.targets._cuda import GpuInfo

SHAPE = (1, 3)


class StandInTensorRt:
    """The part of TensorRT's Python interface that is used, recording what it is asked for."""

    class ILogger:
        pass

    class IProfiler:
        pass

    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    BuilderFlag = SimpleNamespace(TF32="tf32")

    def __init__(self, version: str, *, strongly_typed_flag: bool) -> None:
        self.__version__ = version
        flags = {"STRONGLY_TYPED": 1} if strongly_typed_flag else {}
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**flags)
        self.network_flags: list[int] = []
        self.config = SimpleNamespace(builder_optimization_level=3, clear_flag=lambda flag: None)
        self.serialized: bytes | None = b"plan"
        self.opens = True

    def Builder(self, log: Any) -> Any:  # noqa: N802 - TensorRT's name
        def build(network: Any, config: Any) -> bytes | None:
            log.log(SimpleNamespace(name="ERROR"), "no implementation for layer x")
            return self.serialized

        return SimpleNamespace(
            create_network=self.network_flags.append,
            create_builder_config=lambda: self.config,
            build_serialized_network=build,
        )

    def OnnxParser(self, network: Any, log: Any) -> Any:  # noqa: N802 - TensorRT's name
        return SimpleNamespace(parse=lambda data: True, num_errors=0)

    def Runtime(self, log: Any) -> Any:  # noqa: N802 - TensorRT's name
        def deserialize(data: bytes) -> Any:
            assert data == b"plan"
            log.log(SimpleNamespace(name="ERROR"), "version mismatch")
            return (
                SimpleNamespace(create_execution_context=lambda: DoublingContext(SHAPE))
                if self.opens
                else None
            )

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> StandInDriver:
    driver = StandInDriver()
    for module in ("_trt", "tensorrt_full"):
        monkeypatch.setattr(f"edgeattn.targets.{module}.find_gpu", lambda: GpuInfo("Stand-in", (8, 7)))
    monkeypatch.setattr(shared, "load_library", lambda: driver)
    # The stand-in's log must neither be kept for the real package nor come from it.
    monkeypatch.setattr(shared, "_log_of", shared._log_of.__wrapped__)
    return driver


def install(monkeypatch: pytest.MonkeyPatch, version: str, *, flag: bool) -> StandInTensorRt:
    module = StandInTensorRt(version, strongly_typed_flag=flag)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture
def artifact(artifacts: dict[str, OnnxArtifact]) -> OnnxArtifact:
    specs = {"inputs": (IoSpec("input", SHAPE),), "outputs": (IoSpec("logits", SHAPE),)}
    return OnnxArtifact(**{**vars(artifacts["s8"]), **specs})


def build(artifact: OnnxArtifact, folder: Path) -> Engine:
    return get_target("tensorrt").build(artifact, folder)


@pytest.mark.parametrize(("version", "flag", "flags"), [("10.13.0", True, 2), ("11.1.0", False, 0)])
def test_both_generations_build_a_strongly_typed_network(
    version: str,
    flag: bool,
    flags: int,
    library: StandInDriver,
    artifact: OnnxArtifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = install(monkeypatch, version, flag=flag)
    engine = build(artifact, tmp_path)
    assert module.network_flags == [flags]
    assert module.config.profiling_verbosity == "detailed"
    assert engine.path.read_bytes() == b"plan"
    assert engine.details["compute_capability"] == "SM87"
    assert engine.details["runtime"] == f"tensorrt {version}"


def test_an_engine_runs_and_gives_everything_back(
    library: StandInDriver, artifact: OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "10.13.0", flag=True)
    engine = build(artifact, tmp_path)
    feeds = {"input": np.array([[1, 2, 3]], np.float32)}
    with get_target("tensorrt").open(engine) as session:
        np.testing.assert_array_equal(session.infer(feeds)["logits"], [[2, 4, 6]])
        assert list(session.time(feeds, TimingPlan(warmup_runs=0, min_runs=2))) == [250_000] * 2
    assert not library.live
    assert not library.buffers
    with pytest.raises(ModelError, match="is closed"):
        session.infer(feeds)


def test_a_failed_open_gives_everything_back(
    library: StandInDriver, artifact: OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install(monkeypatch, "10.13.0", flag=True)
    engine = build(artifact, tmp_path)
    module.opens = False
    with pytest.raises(ModelError, match="version mismatch"), get_target("tensorrt").open(engine):
        pass
    assert not library.live


def test_a_failed_build_carries_the_logs_errors(
    library: StandInDriver, artifact: OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install(monkeypatch, "10.13.0", flag=True)
    module.serialized = None
    with pytest.raises(ModelError, match="no implementation for layer x"):
        build(artifact, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_builder_that_does_not_start_is_unavailable(
    library: StandInDriver, artifact: OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install(monkeypatch, "10.13.0", flag=True)

    def refuse(log: Any) -> Any:
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(module, "Builder", refuse)
    with pytest.raises(TargetUnavailable, match="nullptr"):
        build(artifact, tmp_path)
