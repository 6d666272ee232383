"""Files that outlive a process: written whole or not at all, and checked before use."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeattn.errors import ArtifactError

__all__ = [
    "IoSpec",
    "OnnxArtifact",
    "atomic_write",
    "follow_links",
    "read_json",
    "sha256_of_bytes",
    "sha256_of_file",
    "verify_sha256",
    "write_bytes",
    "write_json",
]


def follow_links(path: Path, *, strict: bool = False) -> Path:
    """Return the absolute path behind symbolic links.

    A loop of links ends at one of its links: to open it is an OSError. `pathlib.Path.resolve` raises RuntimeError
    there up to Python 3.12.

    Args:
        path: Where to start.
        strict: Raise OSError for what does not exist, and for a loop.
    """
    return Path(os.path.realpath(path, strict=strict))


def sha256_of_bytes(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError as exc:
        raise ArtifactError(f"Cannot read {path}: {exc.strerror}. Build it again.") from exc
    return digest.hexdigest()


def verify_sha256(path: Path, expected: str) -> None:
    """Check that a file still holds what was written.

    Raises:
        ArtifactError: If it is missing or its content changed.
    """
    got = sha256_of_file(path)
    if got != expected:
        raise ArtifactError(
            f"{path} was changed after it was written: its SHA-256 is {got[:12]}..., "
            f"{expected[:12]}... was recorded. Delete it and run again to rebuild it."
        )


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, otherwise it is removed.

    Raises:
        ArtifactError: If the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as exc:
        raise _write_error(path, exc) from exc
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as exc:
        raise _write_error(path, exc) from exc
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_error(path: Path, exc: OSError) -> ArtifactError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArtifactError(
            f"The disk is full: {path} was not written, and nothing was left half-written. "
            "Free some space or choose another --out folder, then run the same command again."
        )
    return ArtifactError(
        f"Cannot write {path}: {exc.strerror or exc}. Check that the folder exists and is writable."
    )


def write_bytes(path: Path, data: bytes) -> Path:
    """Write `data` to `path`, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as indented JSON to `path`, whole or not at all."""
    text = json.dumps(value, indent=2, sort_keys=False, allow_nan=False)
    return write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON from `path`.

    Raises:
        ArtifactError: If the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ArtifactError(f"Cannot read {path}: {exc.strerror}. Run the step that writes it.") from exc
    except (UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise ArtifactError(f"{path} is not valid JSON ({exc}). Delete it and run again.") from exc


@dataclasses.dataclass(frozen=True)
class IoSpec:
    """Name, static shape and element type (NumPy spelling) of a graph input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class OnnxArtifact:
    """An ONNX file with what a target must know to use it.

    Attributes:
        path: The ``.onnx`` file.
        sha256: Of the file's content, checked before use.
        opset: Version of the default ONNX domain.
        inputs: Graph inputs, NCHW.
        outputs: Graph outputs.
        profile: ``"fp32"``, ``"s8"`` or ``"u8"``.
        provenance: How it came to be: free-form strings for the report.
    """

    path: Path
    sha256: str
    opset: int
    inputs: tuple[IoSpec, ...]
    outputs: tuple[IoSpec, ...]
    profile: str
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def verify(self) -> None:
        """Raise ArtifactError unless the file is what was recorded."""
        verify_sha256(self.path, self.sha256)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description, with the path's name only."""
        value = dataclasses.asdict(self)
        value["path"] = self.path.name
        value["provenance"] = dict(self.provenance)
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any], folder: Path) -> OnnxArtifact:
        """Rebuild from `to_json`'s result; the file must lie in `folder`.

        Raises:
            ArtifactError: If the description is incomplete or names a path outside the folder.
        """
        try:
            name = str(value["path"])
            if Path(name).name != name:
                raise ArtifactError(f"Artifact path {name!r} leaves its folder; expected a file name.")
            return cls(
                path=folder / name,
                sha256=str(value["sha256"]),
                opset=int(value["opset"]),
                inputs=tuple(_io_spec(item) for item in value["inputs"]),
                outputs=tuple(_io_spec(item) for item in value["outputs"]),
                profile=str(value["profile"]),
                provenance={str(k): str(v) for k, v in value.get("provenance", {}).items()},
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise ArtifactError(f"Artifact description in {folder} is incomplete: {exc!r}.") from exc


def _io_spec(item: Mapping[str, Any]) -> IoSpec:
    return IoSpec(str(item["name"]), tuple(int(d) for d in item["shape"]), str(item["dtype"]))
