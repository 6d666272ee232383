"""How large float tensors become, carried in a model's metadata.

The export writes there what calibration images showed, so that an artifact alone tells a target which of its
tensors float16 can hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from onnx import ModelProto

from edgeattn.errors import ModelError
from edgeattn.onnx_graph import Graph

__all__ = ["EXTENTS_KEY", "attach_extents", "read_extents"]

EXTENTS_KEY = "edgeattn.extents"
"""Key of the metadata entry: JSON, tensor -> largest magnitude on calibration images."""


def attach_extents(model: ModelProto, extents: Mapping[str, float]) -> None:
    """Write largest magnitudes into a model's metadata, in place; nothing where there are none."""
    if extents:
        text = json.dumps({name: float(f"{value:.6g}") for name, value in sorted(extents.items())})
        model.metadata_props.add(key=EXTENTS_KEY, value=text)


def read_extents(graph: Graph) -> dict[str, float]:
    """Return the magnitudes that a model carries; empty if it carries none.

    Raises:
        ModelError: If the entry is not what `attach_extents` writes.
    """
    text = graph.metadata.get(EXTENTS_KEY)
    if text is None:
        return {}
    try:
        found = {str(name): float(value) for name, value in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as exc:
        raise ModelError(
            f"The model's metadata entry {EXTENTS_KEY!r} is not valid. Export it again."
        ) from exc
    if not all(np.isfinite(value) and value >= 0 for value in found.values()):
        raise ModelError(
            f"The model's metadata entry {EXTENTS_KEY!r} holds impossible values. Export it again."
        )
    return found
