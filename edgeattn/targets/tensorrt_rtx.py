"""TensorRT for RTX: installs from the package index and builds engines on machines without a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeattn.errors import RecipeError, TargetUnavailable, close_matches_hint
from edgeattn.targets._cuda import find_gpu
from edgeattn.targets._trt import TensorRtTarget

if TYPE_CHECKING:
    from edgeattn.lower.base import LoweringPass

__all__ = ["TensorRtRtx"]

_WITHOUT_GPU = "SM86"
_WITHOUT_INT8_CONVOLUTIONS = frozenset({"SM75"})


class TensorRtRtx(TensorRtTarget):
    """TensorRT for RTX GPUs, Turing or newer.

    One lowered file builds for all of them. Seen with 1.7.1: for Turing (SM75) it has INT8 matrix products, but no
    INT8 convolution; those run in the type that the graph names. Lowering for SM75 names float16, so that they run
    on its tensor cores, and the coverage in the engine's details says that they are not INT8.

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

    @property
    def device(self) -> str:
        """The GPU that is here and what is built for: asked for, this GPU's, or SM86 where there is none."""
        capability = self._compute_capability or _capability_here() or _WITHOUT_GPU
        return f"{find_gpu().name} {capability}".strip()

    def _builds_without_gpu(self) -> bool:
        return True

    def _more_passes(self) -> Sequence[LoweringPass]:
        from edgeattn.lower.half_products import CONVOLUTIONS, HalfProducts

        asked = self._compute_capability or _capability_here()
        return (HalfProducts(CONVOLUTIONS),) if asked in _WITHOUT_INT8_CONVOLUTIONS else ()

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

    def _advice(self, settings: Mapping[str, Any]) -> str:
        if settings.get("compute_capability") not in _WITHOUT_INT8_CONVOLUTIONS:
            return ""
        return (
            " For Turing it runs INT8 matrix products and what is in float16, but compiles no float32 matrix product. "
            "Lower the model for tensorrt-rtx again; what stays float32 there has values that float16 cannot hold."
        )

    def _recover(self, trt: Any, builder: Any) -> None:
        # With 1.7.1, the next build of the process has no INT8 convolution, whatever it is for: let it be this one.
        network = builder.create_network(self._network_flags(trt))
        given = network.add_input("x", trt.float32, (1, 4))
        network.mark_output(network.add_activation(given, trt.ActivationType.RELU).get_output(0))
        config = builder.create_builder_config()
        self._configure(trt, config)
        builder.build_serialized_network(network, config)


def _capabilities(trt: Any) -> list[str]:
    return [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]


def _capability_here() -> str | None:
    capability = find_gpu().compute_capability
    return "SM{}{}".format(*capability) if capability is not None else None
