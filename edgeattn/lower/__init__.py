"""ONNX to ONNX passes that give one target its fastest spelling without changing the numbers."""

from __future__ import annotations

from edgeattn.lower.base import LoweringError, LoweringPass
from edgeattn.lower.lowering import lower_artifact, lower_model
from edgeattn.lower.passes import PASSES, passes_for
from edgeattn.lower.preferences import DEFAULT_GATE_POLICY, preferred_forms

__all__ = [
    "DEFAULT_GATE_POLICY",
    "PASSES",
    "LoweringError",
    "LoweringPass",
    "lower_artifact",
    "lower_model",
    "passes_for",
    "preferred_forms",
]
