"""Set up real aarch64 runtimes for emulation: ``edgeattn setup arm64``.

Debian's arm64 packages of Python and its libraries are unpacked into a folder, the aarch64 wheels of NumPy,
ONNX Runtime and OpenVINO beside them, and QEMU's user-mode emulation runs the result. Nothing is installed on
this machine and no root is needed: apt gets a state of its own, an empty one, so that it resolves what an
arm64 system would need. Packages are checked by apt's signatures, wheels by the hashes below.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgeattn.artifact import read_json, sha256_of_bytes, sha256_of_file, write_json
from edgeattn.errors import ArtifactError, TargetUnavailable
from edgeattn.progress import Progress, SilentProgress

__all__ = ["SETUP_COMMAND", "Arm64Environment", "find_environment", "setup_arm64", "why_not_set_up"]

SETUP_COMMAND = "edgeattn setup arm64"

_SCHEMA_VERSION = 1
_EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
# Debian 12 has glibc 2.36; OpenVINO's wheel asks for 2.35.
_PLATFORMS = ("manylinux_2_27_aarch64", "manylinux_2_28_aarch64", "manylinux_2_35_aarch64")
# Later ONNX Runtimes (seen: 1.31.1) crash at import under QEMU 7.2.
_WHEELS: dict[str, dict[str, str]] = {
    "numpy==2.4.6": {
        "3.11": "0ab0a9c4ffb1a6d95ef519fe4247dba8eb6b18ad93999f76b7f657039acabd47",
        "3.12": "5f9fb9157b4ce2971008323afe46053787b526ef624fea915b261468a8421a0f",
        "3.13": "72fbe16c6fac95aedf5937fa873445cec2110be35d8a4e9433d7501fd98dae6b",
    },
    "onnxruntime==1.27.0": {
        "3.11": "2eb083321af8a236a84c7c140a7f4cecbfa2a987a18c07c78db471c20cd390ef",
        "3.12": "c6fddce0539a4898c7bef35b052ffd37935b2190e35488eab99ce91887743ea1",
        "3.13": "48b3d87eb560ff6a772240506f3c78d6d27c63cafedd5c775672e1194f968cfd",
    },
    "openvino==2026.4.1": {
        "3.11": "bea1eb3733c34ef331adc945da0ccda5937865031139073663be84c517ffda22",
        "3.12": "82efccb2f9f1bdc7e5a1996e05a3b719ebff9232dd54b44150d6d2e983a86b7d",
        "3.13": "fc45339ff7d539de76e6d7b04135c120504c797cfc8c2a0dde3d2d616b30c758",
    },
}
_STEPS = 6
_TIMEOUT_SECONDS = 900
_CHECK = """
import json, sys, platform, numpy
print(json.dumps({"machine": platform.machine(), "python": platform.python_version(), "numpy": numpy.__version__}))
import onnxruntime
print(json.dumps({"onnxruntime": onnxruntime.__version__}))
import openvino
assert openvino.Core().available_devices
print(json.dumps({"openvino": openvino.__version__.split("-")[0]}))
"""


@dataclasses.dataclass(frozen=True)
class Arm64Environment:
    """A folder with an aarch64 Python, and the emulator that runs it.

    Attributes:
        folder: Holds ``root`` (Debian's packages), ``site`` (the wheels) and ``environment.json``.
        emulator: QEMU's program.
        python: Of the interpreter inside, such as ``"3.11"``.
        versions: By name: ``machine``, ``python``, ``numpy``, ``onnxruntime``, ``openvino``.
    """

    folder: Path
    emulator: Path
    python: str
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, object]:
        """Return a JSON-ready description."""
        return {"folder": str(self.folder), "emulator": str(self.emulator), "versions": dict(self.versions)}

    def command(self, *arguments: str, cpu: str = "neoverse-n1") -> list[str]:
        """Return the argument list that runs the emulated Python.

        Args:
            *arguments: For Python.
            cpu: One that QEMU knows. It decides which kernels the runtimes take: ``cortex-a72`` has no dot
                product, ``neoverse-n1`` has, ``max`` also has i8mm.
        """
        root = self.folder / "root"
        libraries = [root / "lib" / "aarch64-linux-gnu", root / "usr" / "lib" / "aarch64-linux-gnu"]
        variables = {
            "PYTHONHOME": str(root / "usr"),
            "PYTHONPATH": str(self.folder / "site"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LD_LIBRARY_PATH": ":".join(str(library) for library in libraries),
        }
        command = [str(self.emulator), "-cpu", cpu, "-L", str(root)]
        for name, value in variables.items():
            command += ["-E", f"{name}={value}"]
        return [*command, str(root / "usr" / "bin" / f"python{self.python}"), "-B", *arguments]


def _cache() -> Path:
    own = os.environ.get("EDGEATTN_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeattn"


def _folder() -> Path:
    return _cache().absolute() / "arm64"


def _environment_folder() -> Path:
    # The pins are part of the name: a version of edgeattn that pins others sets up its own.
    key = sha256_of_bytes(repr((_SCHEMA_VERSION, sorted(_WHEELS.items()), _PACKAGES)).encode())[:12]
    return _folder() / f"environment-{key}"


def _emulator() -> Path | None:
    found = next(filter(None, map(shutil.which, _EMULATORS)), None)
    return Path(found) if found else None


def why_not_set_up() -> tuple[str, str]:
    """Return why nothing can be emulated here, and the command that helps; two empty strings if it can."""
    if platform.machine() in ("aarch64", "arm64"):
        return "this machine is ARM64 itself: nothing needs emulation. Use ort-cpu and openvino-cpu", ""
    if _emulator() is None:
        return f"{_EMULATORS[0]} is not installed", "apt-get install qemu-user-static"
    folder = _environment_folder()
    if not (folder / "environment.json").is_file():
        return f"the ARM64 runtimes are not set up in {folder.parent}", SETUP_COMMAND
    return "", ""


def find_environment() -> Arm64Environment:
    """Return the environment that was set up.

    Raises:
        TargetUnavailable: If there is none; the message says what helps.
        ArtifactError: If its description is damaged.
    """
    reason, install = why_not_set_up()
    if reason:
        raise TargetUnavailable(f"ARM64 cannot be emulated here: {reason}. {install}".rstrip())
    emulator = _emulator()
    if emulator is None:
        raise TargetUnavailable(f"{_EMULATORS[0]} is not installed. apt-get install qemu-user-static")
    folder = _environment_folder()
    value = read_json(folder / "environment.json")
    try:
        # No match is an IndexError, and damage like the others.
        python = re.findall(r"^3\.\d+$", str(value["python"]))[0]
        versions = {str(name): str(version) for name, version in value["versions"].items()}
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        raise ArtifactError(f"{folder} is damaged ({exc!r}). Run `{SETUP_COMMAND} --again`.") from exc
    return Arm64Environment(folder, emulator, python, versions)


def setup_arm64(*, again: bool = False, progress: Progress | None = None) -> Arm64Environment:
    """Download, check and unpack the ARM64 runtimes, unless they are there.

    What an interrupted call downloaded is kept and used by the next one.

    Args:
        again: Remove what is there and set up anew.
        progress: Hears how far it is.

    Raises:
        TargetUnavailable: If a program is missing here, or a download fails.
        ArtifactError: If a file is not what was pinned, or the disk is full.
    """
    progress = progress or SilentProgress()
    _check_programs()
    folder = _environment_folder()
    # The separators of search paths and of QEMU's options, and what apt's configuration would end at.
    if odd := set(str(folder)) & set(':,";\n'):
        raise ArtifactError(
            f"ARM64 cannot be set up in {str(folder)!r}: {' '.join(map(repr, sorted(odd)))} cannot be in its path. "
            "Choose another folder with EDGEATTN_CACHE."
        )
    with _locked(_folder()):
        if again:
            _remove(folder)
        if not (folder / "environment.json").is_file():
            _remove(folder)
            try:
                _set_up(folder, progress)
            except OSError as exc:
                raise ArtifactError(
                    f"Cannot set up {folder}: {exc.strerror or exc}. It takes 450 MB; free some space, or choose "
                    "another place with the variable EDGEATTN_CACHE, and run the same command again."
                ) from exc
    progress.update("arm64", _STEPS, _STEPS)
    return find_environment()


def _set_up(folder: Path, progress: Progress) -> None:
    downloads, part = _folder() / "downloads", folder.with_name(folder.name + ".part")
    _remove(part)
    part.mkdir(parents=True)
    progress.update("arm64", 0, _STEPS)
    apt = _Apt(downloads / "apt")
    apt.update()
    progress.update("arm64", 1, _STEPS)
    packages = apt.download(_PACKAGES)
    progress.update("arm64", 2, _STEPS)
    root = part / "root"
    for package in packages:
        _run(["dpkg-deb", "-x", str(package), str(root)], f"unpacking {package.name}")
    if not (root / "lib").exists():
        # Where /usr is merged, a package that only a real installation needs makes this link.
        (root / "lib").symlink_to("usr/lib")
    python = _python_of(root)
    progress.update("arm64", 3, _STEPS)
    wheels = _download_wheels(downloads / "wheels", python)
    progress.update("arm64", 4, _STEPS)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            # extractall() drops what would leave the folder.
            archive.extractall(part / "site")
    progress.update("arm64", 5, _STEPS)
    emulator = _emulator()
    environment = Arm64Environment(part, emulator or Path(_EMULATORS[0]), python, {})
    output = _run(environment.command("-c", _CHECK), "starting the emulated Python")
    versions: dict[str, str] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            versions |= json.loads(line)
    write_json(
        part / "environment.json",
        {
            "schema_version": _SCHEMA_VERSION,
            "python": python,
            "versions": versions,
            "files": {path.name: sha256_of_file(path) for path in (*packages, *wheels)},
        },
    )
    os.replace(part, folder)
    _remove(downloads)


class _Apt:
    """apt with a state of its own, for arm64, from the sources and keys of this machine."""

    def __init__(self, folder: Path) -> None:
        self._archives = folder / "cache" / "archives"
        for path in (folder / "state" / "lists" / "partial", self._archives / "partial"):
            path.mkdir(parents=True, exist_ok=True)
        # Nothing is installed in it, so apt fetches everything that the packages need.
        (folder / "state" / "status").write_bytes(b"")
        self._config = folder / "apt.conf"
        self._config.write_text(
            'APT::Architecture "arm64";\n'
            'APT::Architectures { "arm64"; };\n'
            f'Dir::State "{folder / "state"}";\n'
            f'Dir::State::status "{folder / "state" / "status"}";\n'
            f'Dir::Cache "{folder / "cache"}";\n'
            # The folder is ours alone, and apt's own user cannot enter it.
            'Debug::NoLocking "true";\n'
            'APT::Sandbox::User "";\n'
            'Acquire::Retries "3";\n',
            encoding="utf-8",
        )

    def update(self) -> None:
        self._apt(["update"], "reading the lists of arm64 packages")

    def download(self, names: Sequence[str]) -> list[Path]:
        """Fetch packages and what they depend on, each checked by apt, and return their files."""
        arguments = ["install", "--download-only", "--no-install-recommends", "--yes", *names]
        self._apt(arguments, "downloading arm64 packages")
        # A newer version may lie beside what an interrupted call left: take apt's own list.
        self._apt(["autoclean"], "removing old arm64 packages")
        files = sorted(self._archives.glob("*.deb"))
        if not files:
            raise TargetUnavailable("apt downloaded no arm64 package. Check its sources: apt-get update")
        return files

    def _apt(self, arguments: Sequence[str], what: str) -> str:
        return _run(
            ["apt-get", "--quiet", *arguments], what, {"APT_CONFIG": str(self._config), "LC_ALL": "C"}
        )


def _download_wheels(folder: Path, python: str) -> list[Path]:
    """Fetch the pinned wheels; pip refuses one whose hash is another."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(python not in hashes for hashes in _WHEELS.values()):
        known = ", ".join(sorted(next(iter(_WHEELS.values()))))
        raise TargetUnavailable(
            f"Debian's arm64 Python here is {python}; wheels are pinned for {known}. Use a release with one of those."
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(
        "".join(f"{name} --hash=sha256:{hashes[python]}\n" for name, hashes in _WHEELS.items()),
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--python-version", python, "--implementation", "cp"]
    for name in _PLATFORMS:
        command += ["--platform", name]
    _run([*command, "--dest", str(folder), "-r", str(requirements)], "downloading aarch64 wheels")
    # Once more here: what is unpacked is what was pinned, whatever pip was told by its configuration.
    wanted = {hashes[python] for hashes in _WHEELS.values()}
    found = {sha256_of_file(path): path for path in folder.glob("*.whl")}
    if missing := wanted - set(found):
        raise ArtifactError(
            f"{len(missing)} of the wheels in {folder} are not what was pinned. Delete it and try again."
        )
    return [found[digest] for digest in sorted(wanted)]


def _python_of(root: Path) -> str:
    names = [path.name for path in (root / "usr" / "bin").glob("python3.*")]
    versions = sorted(match.group(1) for name in names if (match := re.fullmatch(r"python(3\.\d+)", name)))
    if not versions:
        raise TargetUnavailable("The arm64 packages hold no Python. Check apt's sources: apt-get update")
    return versions[-1]


def _check_programs() -> None:
    if platform.machine() in ("aarch64", "arm64"):
        raise TargetUnavailable(why_not_set_up()[0] + ".")
    needed = {"apt-get": "apt", "dpkg-deb": "dpkg"}
    missing = [package for program, package in needed.items() if shutil.which(program) is None]
    if missing:
        raise TargetUnavailable(
            f"Setting up ARM64 needs {' and '.join(missing)}, which are not here. Use Debian or Ubuntu, or a "
            "container of one."
        )
    if _emulator() is None:
        raise TargetUnavailable(
            f"{_EMULATORS[0]} is not installed. Install it as root: apt-get install qemu-user-static"
        )


def _run(command: Sequence[str], what: str, variables: Mapping[str, str] | None = None) -> str:
    """Run a program and return what it printed.

    Raises:
        TargetUnavailable: If it fails; the message ends with its last lines.
    """
    environment = {**os.environ, **(variables or {})}
    try:
        done = subprocess.run(
            list(command),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise TargetUnavailable(f"{what} took more than {_TIMEOUT_SECONDS} s and was stopped.") from exc
    if done.returncode:
        said = " / ".join([*done.stdout.splitlines(), *done.stderr.splitlines()][-4:]) or "nothing"
        raise TargetUnavailable(
            f"{what} failed (exit code {done.returncode}): {said}. What was downloaded is kept; try again."
        )
    return done.stdout


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time set up."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w", encoding="utf-8")
    except OSError as exc:
        raise ArtifactError(
            f"Cannot write {folder}: {exc.strerror}. Choose another place with EDGEATTN_CACHE."
        ) from exc
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
