"""A CUDA driver whose device memory is this process's memory, and an execution context that uses it."""

# ruff: noqa: N802 - the driver's functions have the names that NVIDIA gave them.
from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


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
