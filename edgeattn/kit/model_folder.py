"""The ``model/`` folder that all kits share: read, checked, and copied with its hashes."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from edgeattn.artifact import follow_links, read_json, sha256_of_bytes, verify_sha256, write_bytes, write_json
from edgeattn.errors import ArtifactError
from edgeattn.kit.spec import MANIFEST, KitFile, KitModel, NamedFile, Reference

__all__ = [
    "add_file",
    "check_model",
    "copy_model",
    "load_model",
    "load_reference",
    "manifest_name",
    "write_manifest",
]

M = TypeVar("M", bound=BaseModel)


def manifest_name(profile: str) -> str:
    """Return the manifest's name in a folder that holds several profiles, as the demonstration's does."""
    return MANIFEST if profile == "u8" else f"model.{profile}.json"


def load_model(path: Path) -> KitModel:
    """Read ``model.json``, or the one in a folder.

    Raises:
        ArtifactError: If it is missing or not valid.
    """
    path = path / MANIFEST if path.is_dir() else path
    return _validate(KitModel, path)


def load_reference(folder: Path, model: KitModel) -> Reference:
    """Read the expected outputs of a folder, after checking their hash.

    Raises:
        ArtifactError: If they are missing, changed or not valid.
    """
    path = folder / model.reference.file
    verify_sha256(path, model.reference.sha256)
    reference = _validate(Reference, path)
    for image in reference.images:
        known = model.files.get(image.file)
        if known is None or known.sha256 != image.sha256:
            raise ArtifactError(
                f"{path} names {image.file}, which model.json does not list with that hash. Make the kit again."
            )
    return reference


def check_model(folder: Path) -> KitModel:
    """Check every file of a ``model/`` folder against ``model.json``.

    Raises:
        ArtifactError: If one is missing, changed, or no file of the folder.
    """
    model = load_model(folder)
    for name, expected in model.all_files().items():
        _read(folder, name, expected)
    load_reference(folder, model)
    return model


def copy_model(manifest: Path, folder: Path, variants: tuple[str, ...] = ()) -> KitModel:
    """Copy a model folder, each file checked as it is read.

    Args:
        manifest: Its ``model.json``, or another profile's manifest beside it.
        folder: Where to; made if it is not there.
        variants: Which of the other spellings to take along.

    Raises:
        ArtifactError: If a file is missing or changed, a variant is not there, or nothing can be written.
    """
    source = load_model(manifest)
    missing = [name for name in variants if name not in source.variants]
    if missing:
        raise ArtifactError(
            f"{manifest} has no variant {', '.join(missing)}; it has: {', '.join(source.variants) or 'none'}."
        )
    kept = {name: source.variants[name] for name in variants}
    model = source.model_copy(
        update={
            "variants": kept,
            "reference": source.reference.model_copy(update={"file": "reference.json"}),
        }
    )
    names = [source.model.file, *(item.file for item in kept.values()), *source.files]
    for name in names:
        write_bytes(folder / name, _read(manifest.parent, name, source.all_files()[name]))
    write_bytes(
        folder / model.reference.file, _read(manifest.parent, source.reference.file, source.reference)
    )
    write_manifest(model, folder / MANIFEST)
    return model


def write_manifest(model: KitModel, path: Path) -> None:
    """Write ``model.json``: last, because it vouches for the other files."""
    write_json(path, model.model_dump(mode="json"))


def add_file(folder: Path, name: str, data: bytes) -> NamedFile:
    """Write a file of a model folder and return its entry."""
    write_bytes(folder / name, data)
    return NamedFile(file=name, sha256=sha256_of_bytes(data), size_bytes=len(data))


def _read(folder: Path, name: str, expected: KitFile) -> bytes:
    path = folder / name
    if not follow_links(path).is_relative_to(follow_links(folder)):
        raise ArtifactError(f"{path} leads out of {folder}. Replace the link by the file itself.")
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise ArtifactError(f"Cannot read {path}: {exc.strerror}. Make the kit again.") from exc
    if len(data) != expected.size_bytes or sha256_of_bytes(data) != expected.sha256:
        raise ArtifactError(
            f"{path} is not the file that model.json lists: {len(data)} bytes, SHA-256 "
            f"{sha256_of_bytes(data)[:12]}... instead of {expected.size_bytes}, {expected.sha256[:12]}... "
            "Make the kit again."
        )
    return data


def _validate(kind: type[M], path: Path) -> M:
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise ArtifactError(
            f"{path} is not valid: {where}: {first['msg']} ({exc.error_count()} problems). Make the kit again."
        ) from exc
