"""Which passes each target gets, in order."""

from __future__ import annotations

from edgeattn.lower.align_channels import AlignChannels
from edgeattn.lower.base import LoweringPass
from edgeattn.lower.biased_zero_points import BiasedZeroPoints
from edgeattn.lower.block_channels import BlockChannels
from edgeattn.lower.copy_gates import CopyGates
from edgeattn.lower.drop_idle_pairs import DropIdlePairs
from edgeattn.lower.drop_inner_pairs import DropInnerPairs
from edgeattn.lower.fill_channels import FillChannels
from edgeattn.lower.flat_maxima import FlatMaxima
from edgeattn.lower.float_gates import FloatGates
from edgeattn.lower.float_sums import FloatSums
from edgeattn.lower.fold_scaling import FoldScaling
from edgeattn.lower.half_products import HalfProducts
from edgeattn.lower.half_remainder import HalfRemainder
from edgeattn.lower.image_convolution import ImageConvolution
from edgeattn.lower.integer_bias import IntegerBias
from edgeattn.lower.integer_swish import IntegerSwish
from edgeattn.lower.merge_moves import MergeMoves
from edgeattn.lower.own_zero_points import OwnZeroPoints
from edgeattn.lower.pads_before_pairs import PadsBeforePairs
from edgeattn.lower.part_clips import PartClips
from edgeattn.lower.part_concats import PartConcats
from edgeattn.lower.part_resizes import PartResizes
from edgeattn.lower.part_softmaxes import PartSoftmaxes
from edgeattn.lower.pool_to_depthwise import PoolToDepthwise
from edgeattn.lower.round_branches import RoundBranches
from edgeattn.lower.safe_reductions import SafeReductions
from edgeattn.lower.spread_gates import SpreadGates
from edgeattn.lower.unit_steps import UnitSteps
from edgeattn.lower.unsigned_pairs import UnsignedPairs
from edgeattn.lower.whole_attention import WholeAttention
from edgeattn.lower.whole_swishes import WholeSwishes
from edgeattn.lower.widen_gates import WidenGates

__all__ = ["PASSES", "passes_for"]

_ONNX_RUNTIME: tuple[LoweringPass, ...] = (
    MergeMoves(),
    FoldScaling(),
    PoolToDepthwise(),
    IntegerBias(),
    PartSoftmaxes(),
)
# The bounds that the figures of browsers were measured with; others were compared on processors only.
_WEB_GATES = WidenGates(max_channels=128, max_copied_channels=128, min_pixels=1024, min_parallel_size=None)
_OPENVINO: tuple[LoweringPass, ...] = (
    WholeSwishes(),
    WholeAttention(),
    SafeReductions(),
    UnsignedPairs(),
    OwnZeroPoints(),
    DropIdlePairs(),
    DropInnerPairs(),
    SpreadGates(),
    RoundBranches(),
    PartConcats(),
    PartClips(),
    FlatMaxima(),
    BiasedZeroPoints(),
    UnitSteps(),
)
_TENSORRT: tuple[LoweringPass, ...] = (
    WholeSwishes(),
    PadsBeforePairs(),
    FloatGates(),
    CopyGates(),
    AlignChannels(),
    HalfRemainder(),
    HalfProducts(),
)

PASSES: dict[str, tuple[LoweringPass, ...]] = {
    "reference": (),
    # On ARM the target adds `FloatSums`, with an old ONNX Runtime `PartResizes`.
    "ort-cpu": (
        WholeAttention(in_one=False),
        *_ONNX_RUNTIME,
        BlockChannels(),
        WidenGates(),
        ImageConvolution(),
        FillChannels(),
        IntegerSwish(),
    ),
    # A file that is carried to other processors and other ONNX Runtimes.
    "ort-portable": (
        WholeAttention(in_one=False),
        *_ONNX_RUNTIME,
        PartResizes(),
        BlockChannels(),
        WidenGates(),
        FloatSums(),
        ImageConvolution(),
        FillChannels(),
        IntegerSwish(),
    ),
    # Browsers have no symmetric kernels, and their graphics processors neither pad nor clip integers.
    "ort-web": (*_ONNX_RUNTIME, _WEB_GATES, FloatSums()),
    "openvino-cpu": _OPENVINO,
    "tensorrt": _TENSORRT,
    "tensorrt-rtx": _TENSORRT,
    "jetson-ssh": _TENSORRT,
}
"""Target -> passes. A target that is not listed gets the graph as it was exported."""


def passes_for(target: str) -> tuple[LoweringPass, ...]:
    """Return a target's passes; none for targets from outside this package."""
    return PASSES.get(target, ())
