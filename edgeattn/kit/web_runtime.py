"""ONNX Runtime Web: the files that a page needs of it, pinned, from a folder, a cache or npm."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from edgeattn.artifact import sha256_of_bytes, write_bytes
from edgeattn.errors import ArtifactError, MissingExtraError, RecipeError

__all__ = ["RUNTIME_NAME", "RUNTIME_VERSION", "RuntimeFile", "read_runtime", "runtime_cache"]

RUNTIME_NAME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"

# Of the published archive, as npm's lock files record it.
_INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_LARGEST_ARCHIVE_BYTES = 300_000_000
_DOWNLOAD_SECONDS = 600


@dataclasses.dataclass(frozen=True)
class RuntimeFile:
    """A file of the package, and its name in a kit.

    Attributes:
        build: ``"wasm"`` or ``"webgpu"``.
        role: ``"module"`` or ``"binary"``.
        name: In the package's folder ``dist``.
        kit_name: In the kit. Modules end in ``.js``: servers that do not know ``.mjs`` are common, and
            browsers refuse a module of another type.
        sha256: Of the content.
    """

    build: str
    role: str
    name: str
    kit_name: str
    sha256: str


FILES = (
    RuntimeFile(
        "wasm",
        "module",
        "ort.wasm.bundle.min.mjs",
        "runtime/ort.wasm.bundle.min.js",
        "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    ),
    RuntimeFile(
        "wasm",
        "binary",
        "ort-wasm-simd-threaded.wasm",
        "runtime/ort-wasm-simd-threaded.wasm",
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
    RuntimeFile(
        "webgpu",
        "module",
        "ort.webgpu.bundle.min.mjs",
        "runtime/ort.webgpu.bundle.min.js",
        "0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2",
    ),
    RuntimeFile(
        "webgpu",
        "binary",
        "ort-wasm-simd-threaded.asyncify.wasm",
        "runtime/ort-wasm-simd-threaded.asyncify.wasm",
        "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
    ),
)


def runtime_cache() -> Path:
    """Return the folder where the runtime's files stay for the next kit."""
    home = os.environ.get("XDG_CACHE_HOME")
    base = Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache"
    return base / "edgeattn" / f"{RUNTIME_NAME}-{RUNTIME_VERSION}"


def read_runtime(folder: Path | None = None, *, webgpu: bool = False) -> dict[RuntimeFile, bytes]:
    """Return the runtime's files, each checked against its pinned hash.

    Args:
        folder: The package, unpacked (it holds ``package.json`` and ``dist/``); None takes the files from
            the cache, or has npm fetch them into it.
        webgpu: Also the build for graphics processors.

    Raises:
        RecipeError: If `folder` is no such package, or of another version.
        MissingExtraError: If neither the cache nor npm is there.
        ArtifactError: If npm fails, or brings other files.
    """
    wanted = [item for item in FILES if webgpu or item.build == "wasm"]
    if folder is not None:
        return {item: _from_folder(folder, item) for item in wanted}
    cache = runtime_cache()
    found = {item: _from_cache(cache, item) for item in wanted}
    if all(data is not None for data in found.values()):
        return {item: data for item, data in found.items() if data is not None}
    everything = _from_npm()
    for item, data in everything.items():
        write_bytes(cache / item.name, data)
    return {item: everything[item] for item in wanted}


def _from_folder(folder: Path, item: RuntimeFile) -> bytes:
    path = folder / "dist" / item.name
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise RecipeError(
            f"--runtime {folder} has no dist/{item.name} ({exc.strerror}). Name the unpacked npm package "
            f"{RUNTIME_NAME} {RUNTIME_VERSION}, the folder with its package.json."
        ) from exc
    if sha256_of_bytes(data) != item.sha256:
        raise RecipeError(
            f"{path} is not the one of {RUNTIME_NAME} {RUNTIME_VERSION}: its SHA-256 is "
            f"{sha256_of_bytes(data)[:12]}... instead of {item.sha256[:12]}... The page is tested with that "
            f"version only; get it with: npm pack {RUNTIME_NAME}@{RUNTIME_VERSION}"
        )
    return data


def _from_cache(cache: Path, item: RuntimeFile) -> bytes | None:
    try:
        data = (cache / item.name).read_bytes()
    except OSError:
        return None
    # A damaged cache is not an error: the file is fetched again.
    return data if sha256_of_bytes(data) == item.sha256 else None


def _from_npm() -> dict[RuntimeFile, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise MissingExtraError(
            f"The web kit needs the npm package {RUNTIME_NAME} {RUNTIME_VERSION}, and npm is not installed here. "
            "Install it (apt install npm), or unpack the package elsewhere and name its folder: --runtime DIR."
        )
    with tempfile.TemporaryDirectory(prefix="edgeattn-npm-") as scratch:
        command = [npm, "pack", f"{RUNTIME_NAME}@{RUNTIME_VERSION}", "--ignore-scripts", "--silent"]
        try:
            done = subprocess.run(
                [*command, "--pack-destination", scratch],
                cwd=scratch,
                capture_output=True,
                text=True,
                timeout=_DOWNLOAD_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise ArtifactError(
                f"npm could not fetch {RUNTIME_NAME} {RUNTIME_VERSION}: {exc}. {_OTHERWISE}"
            ) from exc
        archives = sorted(Path(scratch).glob("*.tgz"))
        if done.returncode != 0 or len(archives) != 1:
            said = " ".join((done.stderr or done.stdout).split())[-300:] or f"exit code {done.returncode}"
            raise ArtifactError(f"npm could not fetch {RUNTIME_NAME} {RUNTIME_VERSION}: {said}. {_OTHERWISE}")
        return _unpack(archives[0])


_OTHERWISE = "Check the network, or name the unpacked package: --runtime DIR."


def _unpack(archive: Path) -> dict[RuntimeFile, bytes]:
    if archive.stat().st_size > _LARGEST_ARCHIVE_BYTES:
        raise ArtifactError(f"{archive.name} is larger than any release of {RUNTIME_NAME}; it was not used.")
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != _INTEGRITY:
        raise ArtifactError(
            f"npm brought another {RUNTIME_NAME} {RUNTIME_VERSION} than the published one: its integrity is "
            f"sha512-{digest[:16]}... instead of {_INTEGRITY[:23]}... It was not used; look at npm's registry "
            "and proxy settings."
        )
    found = {}
    try:
        with tarfile.open(archive) as tar:
            for item in FILES:
                stream = tar.extractfile(f"package/dist/{item.name}")
                found[item] = stream.read() if stream is not None else b""
    except (OSError, KeyError, tarfile.TarError) as exc:
        raise ArtifactError(f"{archive.name} cannot be unpacked: {exc}. {_OTHERWISE}") from exc
    for item, data in found.items():
        if sha256_of_bytes(data) != item.sha256:
            raise ArtifactError(f"{item.name} in {archive.name} is not the recorded file. {_OTHERWISE}")
    return found
