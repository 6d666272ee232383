"""From an exported artifact to one target's spelling of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import onnx

from edgeattn.artifact import OnnxArtifact, sha256_of_bytes, write_bytes
from edgeattn.errors import ModelError
from edgeattn.lower.base import LoweringError, LoweringPass, run_passes
from edgeattn.lower.passes import passes_for
from edgeattn.onnx_graph import Graph

__all__ = ["lower_artifact", "lower_model"]


def lower_model(
    model: onnx.ModelProto, target: str, *, more: Sequence[LoweringPass] = ()
) -> tuple[onnx.ModelProto, list[str]]:
    """Apply a target's passes to a model.

    Args:
        model: As `edgeattn.export` writes it.
        target: Name of the target.
        more: Passes behind the target's own, for one kind of its devices.

    Returns:
        The lowered model, and the names of the passes that changed something.

    Raises:
        LoweringError: If a pass's conditions do not hold.
    """
    graph = Graph(model)
    before = graph.io_specs()
    changed = run_passes(graph, (*passes_for(target), *more))
    if not changed:
        return model, []
    graph.remove_unused()
    graph.sort()
    if graph.io_specs() != before:
        raise LoweringError(
            f"Lowering for {target} changed the model's inputs or outputs. "
            "This is a defect in edgeattn; the artifact was not written."
        )
    lowered = graph.to_model()
    try:
        onnx.checker.check_model(lowered, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise LoweringError(f"Lowering for {target} left an invalid model: {exc}.") from exc
    return lowered, changed


def lower_artifact(
    artifact: OnnxArtifact, *, target: str, workdir: Path, more: Sequence[LoweringPass] = ()
) -> OnnxArtifact:
    """Write the artifact in a target's fastest spelling.

    Args:
        artifact: From the export; checked against its hash.
        target: Name of the target.
        workdir: Where ``<stem>.<target>.onnx`` goes, written whole or not at all.
        more: Passes behind the target's own, for one kind of its devices.

    Returns:
        The new artifact: same inputs, outputs and profile; provenance extended with the pass names.

    Raises:
        ArtifactError: If the file changed since it was written, or the new one cannot be written.
        ModelError: If the file is no ONNX model.
        LoweringError: If a pass's conditions do not hold.
    """
    artifact.verify()
    try:
        model = onnx.load(str(artifact.path))
    except Exception as exc:
        # Protobuf's own error type depends on its backend.
        raise ModelError(f"{artifact.path} is not an ONNX model: {exc}. Export it again.") from exc
    lowered, changed = lower_model(model, target, more=more)
    data = lowered.SerializeToString(deterministic=True)
    path = write_bytes(workdir / f"{artifact.path.stem}.{target}.onnx", data)
    return dataclasses.replace(
        artifact,
        path=path,
        sha256=sha256_of_bytes(data),
        provenance={
            **artifact.provenance,
            "lowered_for": target,
            "lowering_passes": ",".join(changed),
            "lowered_from": artifact.sha256,
        },
    )
