"""Which attention runs on DLA alone, and what of the others falls back to the GPU.

Of an INT8 network with the form that TensorRT prefers, after the exact fixes of `edgeattn lint --target dla`; a test
compares every line with the real output, on maps of 32 channels at 16x16. Larger maps may also exceed 8192 in some
dimension, as CoT's unfolded windows do in a MobileNetV2 at 224x224. Other forms of the same attention may fall back
less: `edgeattn tune --rank-by dla` plans them all, in the network that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["DLA_FALLBACKS"]

DLA_FALLBACKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "se": (),
        "gsop": ("MatMul", "Reshape", "Transpose"),
        "srm": ("Concat", "Sqrt"),
        "gct": ("Div", "ReduceMean", "Sqrt"),
        "eca": (),
        "fca": (),
        "enc": ("MatMul", "ReduceSum", "Reshape", "Transpose", "Unsqueeze"),
        "ge": (),
        "sagan": ("MatMul", "Reshape", "Softmax", "Transpose"),
        "nonlocal": ("MatMul", "Reshape", "Softmax", "Transpose"),
        "mhsa": ("MatMul",),
        "vit": ("Add", "Div", "Erf", "LayerNormalization", "MatMul", "Reshape", "Transpose"),
        "psa": ("Gather", "MatMul", "Reshape"),
        "axial": ("MatMul", "Reshape"),
        "cca": ("Add", "Concat", "MatMul"),
        "external": ("Div", "ReduceSum", "Reshape", "Softmax"),
        "cot": ("Mul",),
        "cbam": ("Mul", "ReduceMax", "ReduceMean"),
        "triplet": ("Add", "ReduceMax", "ReduceMean"),
        "coord": ("Concat", "Mul"),
        "residual_attention": (),
        "bam": ("Add",),
        "scse": ("Add",),
        "simam": ("Reciprocal", "Sqrt"),
        "danet": ("MatMul", "Neg", "Reshape", "Softmax", "Transpose"),
        "strip": ("Add",),
        "gala": ("Mul",),
        "highway": (),
    }
)
"""Attention -> operations that DLA does not run; empty where it runs all."""
