"""The few calls of the CUDA driver that a TensorRT engine needs, through ctypes: JetPack's driver is enough."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p

import numpy as np

__all__ = ["Cuda", "CudaError"]

_NON_BLOCKING = 1
_ARGUMENTS = {
    "cuInit": (c_uint,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
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


class CudaError(RuntimeError):
    """A call failed, or there is no driver or GPU."""


class Cuda:
    """The first GPU: memory, one stream, two events; freed by `close`.

    Args:
        library: The loaded driver; None loads it.
    """

    def __init__(self, library=None):
        if library is None:
            try:
                library = ctypes.CDLL("libcuda.so.1")
            except OSError as exc:
                raise CudaError(f"no NVIDIA driver: {exc}") from exc
        self._library = library
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name, None)
            if function is not None:
                function.argtypes, function.restype = list(arguments), c_int
        self._memory: list[int] = []
        self._events: list[c_void_p] = []
        self._stream = c_void_p()
        self._device = c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", byref(self._device), 0)
        name, major, minor = ctypes.create_string_buffer(256), c_int(), c_int()
        self._call("cuDeviceGetName", name, 256, self._device)
        self._call("cuDeviceGetAttribute", byref(major), 75, self._device)
        self._call("cuDeviceGetAttribute", byref(minor), 76, self._device)
        self.name = name.value.decode(errors="replace")
        self.compute_capability = f"SM{major.value}{minor.value}"
        context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(context), self._device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", byref(self._stream), _NON_BLOCKING)
        for _ in range(2):
            event = c_void_p()
            self._call("cuEventCreate", byref(event), 0)
            self._events.append(event)

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream.value or 0)

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), max(1, size_bytes))
        self._memory.append(address.value)
        return address.value

    def upload(self, address: int, array) -> None:
        """Copy a contiguous array to the device."""
        array = np.ascontiguousarray(array)
        self._call("cuMemcpyHtoD_v2", address, array.ctypes.data, array.nbytes)

    def download(self, array, address: int) -> None:
        """Copy device memory into a contiguous array."""
        self._call("cuMemcpyDtoH_v2", array.ctypes.data, address, array.nbytes)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cuStreamSynchronize", self._stream)

    def record(self, index: int) -> None:
        """Put event 0 or 1 into the stream."""
        self._call("cuEventRecord", self._events[index], self._stream)

    def elapsed_ns(self) -> int:
        """Wait for event 1 and return the time between both."""
        milliseconds = c_float()
        self._call("cuEventSynchronize", self._events[1])
        self._call("cuEventElapsedTime", byref(milliseconds), self._events[0], self._events[1])
        return int(float(milliseconds.value) * 1e6)

    def close(self) -> None:
        """Free everything."""
        for event in self._events:
            self._call("cuEventDestroy_v2", event)
        for address in self._memory:
            self._call("cuMemFree_v2", address)
        if self._stream.value:
            self._call("cuStreamDestroy_v2", self._stream)
        self._events, self._memory, self._stream = [], [], c_void_p()
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, name: str, *arguments) -> None:
        function = getattr(self._library, name, None)
        if function is None:
            raise CudaError(f"the NVIDIA driver has no {name}")
        code = function(*arguments)
        if code:
            raise CudaError(f"{name} failed with CUDA error {code}")
