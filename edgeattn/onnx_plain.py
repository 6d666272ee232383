"""ONNX Runtime as a plain interpreter: every operator as the file says, none fused, none of the INT8 kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx import ModelProto

from edgeattn.extras import require

__all__ = ["open_plain"]


def open_plain(model: ModelProto | Path, purpose: str, *, threads: int = 1) -> Any:
    """Return an ``onnxruntime.InferenceSession`` without graph optimization.

    Args:
        model: The model, or its file.
        purpose: What it is for, named in the error where ONNX Runtime is absent.
        threads: Of one operator.

    Raises:
        MissingExtraError: If ONNX Runtime is not installed.
    """
    ort = require("onnxruntime", purpose=purpose)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
