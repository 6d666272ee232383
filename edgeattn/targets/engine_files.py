"""Engine manifests: what an engine is, in JSON beside it, checked before anything opens the engine.

A manifest may come from anywhere, so every field is checked, and no name in it may leave its folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeattn.artifact import IoSpec, follow_links, read_json, verify_sha256, write_json
from edgeattn.errors import ArtifactError
from edgeattn.targets.base import Engine

__all__ = [
    "engine_from_json",
    "engine_manifest_path",
    "engine_to_json",
    "load_engine",
    "save_engine",
    "side_file_paths",
    "verify_engine",
]

_SCHEMA_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TARGET = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DTYPE = re.compile(r"(float|int|uint)(8|16|32|64)|bool")


def engine_manifest_path(path: Path) -> Path:
    """Return the manifest's path of an engine file: ``<engine>.json``."""
    return path.with_name(path.name + ".json")


def save_engine(engine: Engine) -> Path:
    """Write an engine's manifest beside it and return the manifest's path.

    Raises:
        ArtifactError: If it cannot be written.
    """
    return write_json(engine_manifest_path(engine.path), engine_to_json(engine))


def engine_to_json(engine: Engine) -> dict[str, Any]:
    """Return what a manifest says of an engine, with its file's name only."""
    return {
        "schema_version": _SCHEMA_VERSION,
        "target": engine.target,
        "path": engine.path.name,
        "sha256": engine.sha256,
        "size_bytes": engine.size_bytes,
        "precision": engine.precision,
        "inputs": [_spec_to_json(spec) for spec in engine.inputs],
        "outputs": [_spec_to_json(spec) for spec in engine.outputs],
        "details": dict(engine.details),
    }


def load_engine(path: Path) -> Engine:
    """Read an engine back from its file or its manifest, and check that neither changed.

    Args:
        path: The engine file, or ``<engine>.json``.

    Raises:
        ArtifactError: If the manifest is missing, incomplete, or names a file outside its folder, or
            if the engine is not what the manifest recorded.
    """
    manifest = path if path.name.endswith(".json") else engine_manifest_path(path)
    engine = engine_from_json(read_json(manifest), manifest)
    if engine_manifest_path(engine.path).name != manifest.name:
        raise ArtifactError(
            f"Engine manifest {manifest} describes {engine.path.name}, another file. Build the engine again."
        )
    verify_engine(engine)
    return engine


def verify_engine(engine: Engine) -> None:
    """Check that an engine and the files beside it are what was built.

    Raises:
        ArtifactError: If a file is missing, changed, or lies outside the engine's folder.
    """
    verify_sha256(engine.path, engine.sha256)
    for side_path, sha256 in side_file_paths(engine).items():
        verify_sha256(side_path, sha256)


def side_file_paths(engine: Engine) -> dict[Path, str]:
    """Return the files that belong to an engine beside its own, with their SHA-256.

    They are recorded in ``details["side_files"]``, by name: OpenVINO's weights are one.

    Raises:
        ArtifactError: If a name leaves the engine's folder or a hash is not one.
    """
    side_files = engine.details.get("side_files", {})
    if not isinstance(side_files, Mapping):
        raise ArtifactError(f"Engine {engine.path.name}: side_files is not a mapping. Build it again.")
    paths: dict[Path, str] = {}
    for name, sha256 in side_files.items():
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise ArtifactError(
                f"Engine {engine.path.name}: side file {name!r} has no SHA-256. Build it again."
            )
        paths[_inside(engine.path.parent, name)] = sha256
    return paths


def _inside(folder: Path, name: object) -> Path:
    """Return `folder / name` if that is a plain file of the folder, also behind symbolic links."""
    plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")
    if not plain or follow_links(folder / str(name)).parent != follow_links(folder):
        raise ArtifactError(
            f"Engine manifest in {folder} names {name!r}, which leaves that folder; expected a file name."
        )
    return folder / str(name)


def engine_from_json(value: Any, manifest: Path) -> Engine:
    """Rebuild an engine from `engine_to_json`'s result.

    Args:
        value: From anywhere: every field is checked.
        manifest: Where it stands or could; the engine must lie in the same folder.

    Raises:
        ArtifactError: If it is incomplete, or names a file outside the folder.
    """
    try:
        return _engine_from_json(value, manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ArtifactError(
            f"Engine manifest {manifest} is not valid: {exc}. Build the engine again."
        ) from exc


def _engine_from_json(value: Any, manifest: Path) -> Engine:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {type(value).__name__}")
    if value["schema_version"] != _SCHEMA_VERSION:
        raise ValueError(f"schema_version is {value['schema_version']!r}, expected {_SCHEMA_VERSION}")
    precision = value["precision"]
    if precision not in ("int8", "fp32"):
        raise ValueError(f"precision is {precision!r}, expected 'int8' or 'fp32'")
    size_bytes = value["size_bytes"]
    if not isinstance(size_bytes, int) or isinstance(size_bytes, bool) or size_bytes < 0:
        raise ValueError(f"size_bytes is {size_bytes!r}, expected a whole number")
    details = value["details"]
    if not isinstance(details, dict):
        raise TypeError("details is not an object")
    return Engine(
        target=_matching(_TARGET, value["target"], "target"),
        path=_inside(manifest.parent, value["path"]),
        sha256=_matching(_SHA256, value["sha256"], "sha256"),
        size_bytes=size_bytes,
        inputs=tuple(_spec_from_json(item) for item in value["inputs"]),
        outputs=tuple(_spec_from_json(item) for item in value["outputs"]),
        precision=precision,
        details=details,
    )


def _matching(pattern: re.Pattern[str], value: object, field: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{field} is {value!r}")
    return value


def _spec_to_json(spec: IoSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _spec_from_json(item: Mapping[str, Any]) -> IoSpec:
    shape = item["shape"]
    # Dimensions size buffers, so a wrong one must not get as far as an allocation.
    if not isinstance(shape, list) or len(shape) > 8:
        raise ValueError(f"shape is {shape!r}")
    for dimension in shape:
        if not isinstance(dimension, int) or isinstance(dimension, bool) or not 0 < dimension < 1 << 24:
            raise ValueError(f"shape is {shape!r}")
    return IoSpec(str(item["name"]), tuple(shape), _matching(_DTYPE, item["dtype"], "dtype"))
