"""ONNX models as artifacts on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onnx import ModelProto

from edgeattn.artifact import OnnxArtifact, sha256_of_bytes, write_bytes
from edgeattn.onnx_graph import Graph

__all__ = ["save_artifact"]


def save_artifact(
    model: ModelProto, path: Path, profile: str, provenance: Mapping[str, str] | None = None
) -> OnnxArtifact:
    """Write a model and describe it.

    Args:
        model: With fixed shapes.
        path: The ``.onnx`` file to write, whole or not at all.
        profile: ``"fp32"``, ``"s8"`` or ``"u8"``.
        provenance: How it came to be.
    """
    data = model.SerializeToString()
    write_bytes(path, data)
    graph = Graph(model)
    inputs, outputs = graph.io_specs()
    return OnnxArtifact(
        path, sha256_of_bytes(data), graph.opset, inputs, outputs, profile, dict(provenance or {})
    )
