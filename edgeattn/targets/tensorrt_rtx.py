"""TensorRT for RTX: installs from the package index and builds engines on machines without a GPU."""

from __future__ import annotations

from typing import Any

from edgeattn.errors import RecipeError, TargetUnavailable, close_matches_hint
from edgeattn.targets._cuda import find_gpu
from edgeattn.targets._trt import TensorRtTarget

__all__ = ["TensorRtRtx"]

_WITHOUT_GPU = "SM86"


class TensorRtRtx(TensorRtTarget):
    """TensorRT for RTX GPUs, Turing or newer.

    Seen with 1.7.1: for SM75 it takes no INT8 convolution and refuses to compile a float32 matrix product, so
    that MobileNetV2 does not build there; and the next build of the same process has no INT8 convolution
    either, whatever it is for. The coverage in the engine's details shows both.

    Args:
        compute_capability: Which GPUs the engine is for, such as ``"SM86"``; None means this machine's, or
            SM86 where there is none that it runs on. Recorded in the engine's details.
        tf32: Whether what stays float32 may be computed in TF32.
    """

    name = "tensorrt-rtx"
    package = "tensorrt_rtx"

    def __init__(self, *, compute_capability: str | None = None, tf32: bool = True) -> None:
        super().__init__(tf32=tf32)
        self._compute_capability = compute_capability

    def _builds_without_gpu(self) -> bool:
        return True

    def _refuse_gpu(self, trt: Any, compute_capability: tuple[int, int]) -> str:
        here = "SM{}{}".format(*compute_capability)
        known = _capabilities(trt)
        if here in known:
            return ""
        return f"This GPU is {here}; TensorRT for RTX {trt.__version__} runs on {', '.join(known)}."

    def _configure(self, trt: Any, config: Any) -> dict[str, Any]:
        known = _capabilities(trt)
        here = _capability_here()
        name = self._compute_capability or (here if here in known else None) or _WITHOUT_GPU
        if name not in known:
            raise RecipeError(
                f"TensorRT for RTX {trt.__version__} builds for no compute capability {name!r}. "
                f"{close_matches_hint(name, known)}"
            )
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(trt.ComputeCapability.__members__[name], 0):
            raise TargetUnavailable(f"TensorRT for RTX {trt.__version__} refuses to build for {name}.")
        return {"compute_capability": name}


def _capabilities(trt: Any) -> list[str]:
    return [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]


def _capability_here() -> str | None:
    capability = find_gpu().compute_capability
    return "SM{}{}".format(*capability) if capability is not None else None
