"""TensorRT 10 and 11, on servers and Jetson: builds and runs only where a GPU is.

TensorRT 11 removed weak typing and with it the INT8 and FP16 builder flags and calibrators; TensorRT 10 has
strong typing behind a flag. A strongly typed network with explicit Q/DQ is the recipe that both take.
"""

from __future__ import annotations

from typing import Any

from edgeattn.targets._cuda import find_gpu
from edgeattn.targets._trt import TensorRtTarget

__all__ = ["TensorRt"]

_OLDEST = (10, 0)


class TensorRt(TensorRtTarget):
    """TensorRT.

    Args:
        optimization_level: How hard the builder searches, 0 to 5; None means TensorRT's default.
        tf32: Whether what stays float32 may be computed in TF32.
    """

    name = "tensorrt"
    package = "tensorrt"

    def __init__(self, *, optimization_level: int | None = None, tf32: bool = True) -> None:
        super().__init__(tf32=tf32)
        self._optimization_level = optimization_level

    def _refuse_gpu(self, trt: Any, compute_capability: tuple[int, int]) -> str:
        version = tuple(int(part) for part in str(trt.__version__).split(".")[:2])
        if version < _OLDEST:
            return f"TensorRT {trt.__version__} has no strong typing; install TensorRT 10 or newer."
        return ""

    def _configure(self, trt: Any, config: Any) -> dict[str, Any]:
        if self._optimization_level is not None:
            config.builder_optimization_level = self._optimization_level
        settings: dict[str, Any] = {"optimization_level": config.builder_optimization_level}
        gpu = find_gpu()
        if gpu.compute_capability is not None:
            settings |= {"compute_capability": "SM{}{}".format(*gpu.compute_capability), "gpu": gpu.name}
        return settings
