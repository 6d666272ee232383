"""ONNX to ONNX passes that give one target its fastest spelling without changing the numbers."""

from __future__ import annotations

from edgeattn.lower.base import LoweringError, LoweringPass
from edgeattn.lower.lowering import lower_artifact, lower_model
from edgeattn.lower.passes import PASSES, passes_for

__all__ = ["PASSES", "LoweringError", "LoweringPass", "lower_artifact", "lower_model", "passes_for"]
