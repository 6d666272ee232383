"""What each target runs fastest, as far as that is decided before lowering: edge forms and gate policy.

Chosen by measuring MobileNetV2 on the two CPU runtimes, and from TensorRT's lists of fused layers. A plan
belongs to one edge form, so a run that serves targets of both kinds takes one kind's forms for all, but for those
that the other kind does not take in INT8; `tests.benchmarks.attention_tax` shows the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from edgeattn.attention import attentions

__all__ = ["DEFAULT_GATE_POLICY", "preferred_forms"]

DEFAULT_GATE_POLICY: Literal["int8", "fixed", "float"] = "int8"
"""INT8 gates were the faster ones in most of the combinations measured on the CPU runtimes."""

_CPU = MappingProxyType(
    {
        "eca": "banded_conv",
        "coord": "squeezed_conv",
        "triplet": "short_axis_pool",
        "se": "pool_conv",
        "cbam": "short_axis_pool",
        # The runtimes' float softmaxes go along the last axis; along another one they transpose the scores twice.
        "mhsa": "rows",
        "sagan": "rows",
        "nonlocal": "rows",
        "danet": "rows",
    }
)
# ONNX Runtime keeps maps channels last in any case. In OpenVINO these take 2 to 6 % longer.
_ONNX_RUNTIME = MappingProxyType({"triplet": "short_axis_columns_pool", "cbam": "short_axis_columns_pool"})
# TensorRT fuses a reduction into the element-wise kernel before it, and a pool into nothing. Joined gates of
# Coordinate Attention are 5 kernels with float16 inside; two branches, or two convolutions behind a split, are 8.
_TENSORRT = MappingProxyType(
    {
        "eca": "banded_conv_mean",
        "coord": "joint_mean",
        "triplet": "banded_mean",
        "se": "mean_conv",
        "cbam": "mean_conv",
    }
)
# TensorRT leaves a depthwise convolution as wide as the map in float16, and with it what is behind: half of MobileNetV2's
# layers with weights, and 284 kernels for the 220 of two branches.
_CPU_AND_TENSORRT = MappingProxyType({"coord": "two_branch_pool"})
_GPU_TARGETS = frozenset({"tensorrt", "tensorrt-rtx", "jetson-ssh"})


def preferred_forms(target: str, *others: str) -> Mapping[str, str]:
    """Return the edge form of every attention kind that a target runs fastest; CPU forms by default.

    Kinds that were not compared have their own default form.

    Args:
        target: Whose forms.
        others: What the same graph is built for as well: none gets a form that keeps it out of INT8.
    """
    chosen = _TENSORRT if target in _GPU_TARGETS else _CPU
    if target == "ort-cpu" and "openvino-cpu" not in others:
        chosen = MappingProxyType(chosen | _ONNX_RUNTIME)
    if target not in _GPU_TARGETS and _GPU_TARGETS.intersection(others):
        chosen = MappingProxyType(chosen | _CPU_AND_TENSORRT)
    return {
        name: attentions.get(name).default_form for name in attentions if attentions.get(name).edge_forms
    } | dict(chosen)
