"""Unpack some images of a zip file into class folders; the file may come from anywhere.

Names are read, never joined to a path as they are: what does not have the form ``train/<class>/<image>`` or
``test/<class>/<image>`` is refused, so nothing is written outside of the folder.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from edgeattn.artifact import read_json, sha256_of_bytes, write_json
from edgeattn.data.images import is_image_name
from edgeattn.errors import ArtifactError, DataError

__all__ = ["MAX_MEMBER_BYTES", "unpack_class_folders"]

MAX_MEMBER_BYTES = 16 << 20
"""Most that one image may unpack to: a zip can promise little and hold gigabytes."""

_MOST_MEMBERS = 1_000_000
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}")
_RECORD = "unpacked.json"
Progress = Callable[[int, int], None]


def unpack_class_folders(
    archive: Path,
    folder: Path,
    *,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Unpack the first images of each class, in the order of their names.

    Args:
        archive: A zip with ``train/<class>/<image>`` and ``test/<class>/<image>``.
        folder: Where a folder for this choice is made; one that is whole is taken as it is.
        train_per_class: Most training images of each class; None takes all.
        test_per_class: The same for test images.
        progress: Called with (done, total).

    Returns:
        The folder that holds ``train`` and ``test``.

    Raises:
        DataError: If the file is no such zip, a name leads elsewhere, or an image is larger than 16 MiB.
        ArtifactError: If the folder cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            chosen = _choose(opened, archive, {"train": train_per_class, "test": test_per_class})
            # The sums stand for the content, without reading it.
            listed = [(info.filename, info.CRC, info.file_size) for info in chosen]
            identity = sha256_of_bytes(json.dumps(listed).encode())[:16]
            target = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', archive.stem)}-{identity}"
            if _is_whole(target, len(chosen)):
                return target
            _write(opened, archive, chosen, target, progress)
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as exc:
        raise DataError(
            f"{archive} cannot be unpacked: {exc}. Expected a zip file with train/<class>/<image> and "
            "test/<class>/<image>."
        ) from exc
    return target


def _choose(opened: zipfile.ZipFile, archive: Path, limits: dict[str, int | None]) -> list[zipfile.ZipInfo]:
    """Return the members to unpack, in order."""
    members = [info for info in opened.infolist() if not info.is_dir()]
    if len(members) > _MOST_MEMBERS:
        raise DataError(f"{archive} holds {len(members):,} files; at most {_MOST_MEMBERS:,} are read.")
    by_class: dict[tuple[str, str], list[zipfile.ZipInfo]] = {}
    names: set[str] = set()
    for info in members:
        parts = info.filename.split("/")
        if len(parts) != 3 or parts[0] not in limits or not all(map(_PART.fullmatch, parts)):
            raise DataError(
                f"{archive} holds {info.filename[:120]!r}; expected only train/<class>/<image> and "
                "test/<class>/<image>, of letters, digits, spaces, dots, dashes and underscores."
            )
        # What only differs in case is one file on some systems.
        if not is_image_name(parts[2]) or info.filename.lower() in names:
            raise DataError(f"{archive} holds {info.filename!r} twice, or it is no image's name.")
        if info.file_size > MAX_MEMBER_BYTES:
            raise DataError(
                f"{archive} holds {info.filename!r} of {info.file_size:,} bytes; at most {MAX_MEMBER_BYTES:,}."
            )
        names.add(info.filename.lower())
        by_class.setdefault((parts[0], parts[1]), []).append(info)
    chosen = [
        info
        for (split, _), found in sorted(by_class.items())
        for info in sorted(found, key=lambda info: info.filename)[: limits[split]]
    ]
    if {split for split, _ in by_class} != set(limits):
        raise DataError(f"{archive} must hold both train/<class>/<image> and test/<class>/<image>.")
    return chosen


def _is_whole(folder: Path, count: int) -> bool:
    with contextlib.suppress(ArtifactError):
        return bool(read_json(folder / _RECORD) == {"files": count})
    return False


def _write(
    opened: zipfile.ZipFile,
    archive: Path,
    chosen: list[zipfile.ZipInfo],
    target: Path,
    progress: Progress | None,
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    # Beside its place, then renamed: a folder of that name is whole.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        part = Path(temporary) / "part"
        for done, info in enumerate(chosen):
            with opened.open(info) as stream:
                # The size in the directory may be a lie; one byte more than promised is enough to know.
                data = stream.read(info.file_size + 1)
            if len(data) != info.file_size:
                raise DataError(f"{archive}: {info.filename!r} is not of the size that the archive says.")
            path = part.joinpath(*info.filename.split("/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            if progress is not None:
                progress(done + 1, len(chosen))
        write_json(part / _RECORD, {"files": len(chosen)})
        part.rename(target)
