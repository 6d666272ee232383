"""The driver calls, against a stand-in driver whose device memory is this process's memory."""

# ruff: noqa: N802 - the driver's functions have the names that NVIDIA gave them.
from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.artifact import IoSpec
from edgeattn.errors import ModelError, TargetUnavailable
from edgeattn.targets import Engine, TimingPlan
from edgeattn.targets._cuda import CudaDevice, CudaDriver
from edgeattn.targets._trt_session import TrtSession


class StandInDriver:
    """Answers as the CUDA driver does, and keeps count of what is given back."""

    def __init__(self, devices: int = 1, failing: str = "") -> None:
        self.devices = devices
        self.failing = failing
        self.buffers: dict[int, Any] = {}
        self.live: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            if name == self.failing:
                return 700
            return int(getattr(self, "_" + name, lambda *_: 0)(*arguments) or 0)

        return function

    def _cuGetErrorString(self, code: int, text: Any) -> None:
        text._obj.value = b"an illegal memory access was encountered"

    def _cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = self.devices

    def _cuDeviceGetName(self, name: Any, size: int, device: Any) -> None:
        name.value = b"Stand-in GPU"

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> None:
        value._obj.value = {75: 8, 76: 6}[attribute]

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:
        self.live.append("context")

    def _cuDevicePrimaryCtxRelease_v2(self, device: Any) -> None:
        self.live.remove("context")

    def _cuStreamCreate(self, stream: Any, flags: int) -> None:
        stream._obj.value = 77
        self.live.append("stream")

    def _cuStreamDestroy_v2(self, stream: Any) -> None:
        self.live.remove("stream")

    def _cuEventCreate(self, event: Any, flags: int) -> None:
        self.live.append("event")

    def _cuEventDestroy_v2(self, event: Any) -> None:
        self.live.remove("event")

    def _cuCtxPushCurrent_v2(self, context: Any) -> None:
        self.live.append("current")

    def _cuCtxPopCurrent_v2(self, context: Any) -> None:
        self.live.remove("current")

    def _cuMemAlloc_v2(self, address: Any, size: int) -> None:
        buffer = ctypes.create_string_buffer(size)
        address._obj.value = ctypes.addressof(buffer)
        self.buffers[address._obj.value] = buffer

    def _cuMemFree_v2(self, address: int) -> None:
        del self.buffers[address]

    def _cuMemcpyHtoD_v2(self, address: int, source: int, size: int) -> None:
        ctypes.memmove(address, source, size)

    def _cuMemcpyDtoH_v2(self, destination: int, address: int, size: int) -> None:
        ctypes.memmove(destination, address, size)

    def _cuEventElapsedTime(self, milliseconds: Any, start: Any, end: Any) -> None:
        milliseconds._obj.value = 0.25


class DoublingContext:
    """An execution context that doubles its input."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.addresses: dict[str, int] = {}
        self.works = True
        self.profiler: Any = None

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        floats = int(np.prod(self.shape))
        source = (ctypes.c_float * floats).from_address(self.addresses["input"])
        result = (ctypes.c_float * floats).from_address(self.addresses["logits"])
        result[:] = [2 * value for value in source]
        if self.profiler is not None:
            self.profiler.report_layer_time("double", 0.5)
        return self.works


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
