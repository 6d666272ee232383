"""The few calls of the CUDA driver that running a TensorRT engine takes, through ctypes.

The driver comes with every NVIDIA GPU, so this asks for no package. Signatures follow the driver API
reference; every handle is a pointer and every call returns an error code.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import TargetUnavailable

__all__ = ["CudaDevice", "CudaDriver", "GpuInfo", "find_gpu"]

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuGetErrorString": (c_int, c_void_p),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (c_void_p,),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuEventCreate": (c_void_p, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (c_void_p, c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
}


@dataclasses.dataclass(frozen=True)
class GpuInfo:
    """The first GPU, or why there is none.

    Attributes:
        name: Model, or an empty string.
        compute_capability: Such as ``(8, 6)``, or None.
        reason: Why there is no GPU, or an empty string.
    """

    name: str = ""
    compute_capability: tuple[int, int] | None = None
    reason: str = ""


@functools.cache
def find_gpu() -> GpuInfo:
    """Look for an NVIDIA GPU with a driver. Never raises."""
    try:
        return CudaDriver(load_library()).gpu_info()
    except TargetUnavailable as exc:
        return GpuInfo(reason=str(exc))


def load_library() -> Any:
    """Load the CUDA driver.

    Raises:
        TargetUnavailable: If there is none.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as exc:
        raise TargetUnavailable(f"No NVIDIA driver is installed here ({name} cannot be loaded).") from exc


class CudaDriver:
    """The CUDA driver, with error codes turned into exceptions.

    Args:
        library: The loaded driver.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name, None)
            if function is not None:
                function.argtypes, function.restype = list(arguments), c_int

    def call(self, name: str, *arguments: Any) -> None:
        """Call a driver function.

        Raises:
            TargetUnavailable: If the driver lacks it or it fails.
        """
        function = getattr(self._library, name, None)
        if function is None:
            raise TargetUnavailable(f"This NVIDIA driver has no {name}. Install a newer driver.")
        code = function(*arguments)
        if code:
            raise TargetUnavailable(
                f"The NVIDIA driver failed in {name}: {self._message(code)} (CUDA error {code})."
            )

    def gpu_info(self) -> GpuInfo:
        """Describe the first GPU.

        Raises:
            TargetUnavailable: If there is none or the driver does not start.
        """
        self.call("cuInit", 0)
        count, device = c_int(), c_int()
        self.call("cuDeviceGetCount", byref(count))
        if count.value < 1:
            raise TargetUnavailable("The NVIDIA driver finds no GPU here.")
        self.call("cuDeviceGet", byref(device), 0)
        name, major, minor = ctypes.create_string_buffer(256), c_int(), c_int()
        self.call("cuDeviceGetName", name, 256, device)
        self.call("cuDeviceGetAttribute", byref(major), _MAJOR, device)
        self.call("cuDeviceGetAttribute", byref(minor), _MINOR, device)
        return GpuInfo(name.value.decode(errors="replace"), (major.value, minor.value))

    def _message(self, code: int) -> str:
        text = c_char_p()
        function = getattr(self._library, "cuGetErrorString", None)
        if function is None or function(code, byref(text)) or text.value is None:
            return "unknown error"
        return text.value.decode(errors="replace")


class CudaDevice:
    """The first GPU's primary context, with one stream; what it allocates is freed with it.

    The primary context is the one that the CUDA runtime inside TensorRT uses.

    Args:
        driver: The driver.
    """

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        driver.call("cuInit", 0)
        self._device, context, self._stream = c_int(), c_void_p(), c_void_p()
        driver.call("cuDeviceGet", byref(self._device), 0)
        driver.call("cuDevicePrimaryCtxRetain", byref(context), self._device)
        self._context = context
        self._memory: list[int] = []
        self._events: list[c_void_p] = []
        with self.current():
            driver.call("cuStreamCreate", byref(self._stream), _NON_BLOCKING)
            for _ in range(2):
                event = c_void_p()
                driver.call("cuEventCreate", byref(event), 0)
                self._events.append(event)

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return int(self._stream.value or 0)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current in this thread, as it was found afterwards."""
        self._driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._driver.call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory."""
        address = c_uint64()
        self._driver.call("cuMemAlloc_v2", byref(address), max(1, size_bytes))
        self._memory.append(address.value)
        return address.value

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array to device memory, and wait for it."""
        self._driver.call("cuMemcpyHtoD_v2", address, array.ctypes.data, array.nbytes)

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copy device memory into a contiguous array, and wait for it."""
        self._driver.call("cuMemcpyDtoH_v2", array.ctypes.data, address, array.nbytes)

    def synchronize(self) -> None:
        """Wait until the stream has nothing left to do."""
        self._driver.call("cuStreamSynchronize", self._stream)

    def record(self, index: int) -> None:
        """Put event 0 or 1 into the stream."""
        self._driver.call("cuEventRecord", self._events[index], self._stream)

    def elapsed_ns(self) -> int:
        """Wait for event 1 and return the nanoseconds between both; CUDA resolves about 500 ns."""
        milliseconds = c_float()
        self._driver.call("cuEventSynchronize", self._events[1])
        self._driver.call("cuEventElapsedTime", byref(milliseconds), self._events[0], self._events[1])
        return int(np.float64(milliseconds.value) * 1e6)

    def close(self) -> None:
        """Free everything."""
        with self.current():
            for event in self._events:
                self._driver.call("cuEventDestroy_v2", event)
            for address in self._memory:
                self._driver.call("cuMemFree_v2", address)
            if self._stream.value:
                self._driver.call("cuStreamDestroy_v2", self._stream)
        self._events, self._memory, self._stream = [], [], c_void_p()
        self._driver.call("cuDevicePrimaryCtxRelease_v2", self._device)
