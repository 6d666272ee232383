"""The driver calls, against a stand-in driver whose device memory is this process's memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_stand_in import DoublingContext, StandInDriver

from edgeattn.artifact import IoSpec
from edgeattn.errors import ModelError, TargetUnavailable
from edgeattn.targets import Engine, TimingPlan
from edgeattn.targets._cuda import CudaDevice, CudaDriver
from edgeattn.targets._trt_session import TrtSession


class Module:
    class IProfiler:
        pass


@pytest.fixture
def engine() -> Engine:
    specs = (IoSpec("input", (1, 3)),), (IoSpec("logits", (1, 3)),)
    return Engine("tensorrt", Path("m.plan"), "0" * 64, 1, *specs, "int8")


def test_gpu_info() -> None:
    info = CudaDriver(StandInDriver()).gpu_info()
    assert (info.name, info.compute_capability) == ("Stand-in GPU", (8, 6))
    with pytest.raises(TargetUnavailable, match="no GPU"):
        CudaDriver(StandInDriver(devices=0)).gpu_info()


def test_a_failing_call_is_named_with_the_drivers_reason() -> None:
    driver = CudaDriver(StandInDriver(failing="cuInit"))
    with pytest.raises(TargetUnavailable, match=r"cuInit: an illegal memory access .*CUDA error 700"):
        driver.gpu_info()
    with pytest.raises(TargetUnavailable, match="newer driver"):
        CudaDriver(object()).call("cuInit", 0)


def test_everything_taken_is_given_back() -> None:
    library = StandInDriver()
    device = CudaDevice(CudaDriver(library))
    assert sorted(library.live) == ["context", "event", "event", "stream"]
    address = device.allocate(12)
    sent, received = np.arange(3, dtype=np.float32), np.zeros(3, np.float32)
    device.upload(address, sent)
    device.download(received, address)
    np.testing.assert_array_equal(sent, received)
    device.close()
    assert not library.live
    assert not library.buffers


def test_session_runs_times_and_profiles(engine: Engine) -> None:
    device = CudaDevice(CudaDriver(StandInDriver()))
    session = TrtSession(Module, device, DoublingContext((1, 3)), engine, 1, {})
    feeds = {"input": np.array([[1, 2, 3]], np.float32)}
    np.testing.assert_array_equal(session.infer(feeds)["logits"], [[2, 4, 6]])
    assert list(session.time(feeds, TimingPlan(warmup_runs=1, min_runs=3))) == [250_000] * 3
    (layer,) = session.layer_times(feeds, runs=4)
    assert (layer.name, layer.latency_us) == ("double", 500.0)
    with pytest.raises(ModelError, match="shape"):
        session.infer({"input": np.zeros((1, 4), np.float32)})
    session.close()
    with pytest.raises(ModelError, match="closed"):
        session.infer(feeds)


def test_session_refuses_shapes_that_the_engine_does_not_have(engine: Engine) -> None:
    device = CudaDevice(CudaDriver(StandInDriver()))
    with pytest.raises(ModelError, match="not the"):
        TrtSession(Module, device, DoublingContext((1, 4)), engine, 1, {})


def test_session_reports_a_failed_run(engine: Engine) -> None:
    context = DoublingContext((1, 3))
    context.works = False
    session = TrtSession(Module, CudaDevice(CudaDriver(StandInDriver())), context, engine, 1, {})
    with pytest.raises(ModelError, match="failed"):
        session.infer({"input": np.zeros((1, 3), np.float32)})
