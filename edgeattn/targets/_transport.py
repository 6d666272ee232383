"""Ways to a device: run a program there, send files, read files back.

The system's own ssh and sftp do it, so that ``~/.ssh/config``, agents and jump hosts work as everywhere else.
They are called with argument lists. ssh joins the words of a remote command with blanks and gives them to the
device's shell, so every word is checked against a set of characters that no shell interprets. Host keys are
checked strictly and nobody is ever asked for a password.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from edgeattn.errors import RecipeError, TargetUnavailable
from edgeattn.targets._processes import KEPT_BYTES, LinkDropped, ended, run_process

__all__ = ["LinkDropped", "LocalTransport", "SshTransport", "Transport", "check_word"]

_WORD = re.compile(r"[A-Za-z0-9_./+=:@%,-]{1,400}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:%-]{0,252}|\[[0-9a-fA-F:.%]+\]")
_LINK_LOST = re.compile(
    r"Connection (closed|reset|to .* closed)|Broken pipe|Host key verification|Permission denied \(|Could not resolve"
    r"|Connection refused|timed out"
)
_RESUMED_BYTES = 1 << 20


class Transport(Protocol):
    """A way to one device. Paths on it are relative to its user's home, or to the transport's folder."""

    def run(
        self,
        words: Sequence[str],
        *,
        on_line: Callable[[str, int], None] | None = None,
        seconds: float = 60.0,
    ) -> tuple[int, str]:
        """Run a program there.

        Args:
            words: Program and arguments; only characters that no shell interprets.
            on_line: Hears each finished line of its output, and that line's length in bytes with its end.
            seconds: It is given up after this long without a line.

        Returns:
            Its exit code and the end of what it printed.

        Raises:
            LinkDropped: If the connection is lost or not made.
            TargetUnavailable: If it cannot be made: host key, permission, unknown host.
        """
        ...

    def put(self, files: Mapping[str, Path], folder: str) -> None:
        """Send files, each whole or not at all; a transfer that a dropped link ended is gone on with.

        Args:
            files: Name below `folder` -> local file.
            folder: Made if it is not there.

        Raises:
            LinkDropped: If the connection is lost.
            TargetUnavailable: If the device cannot store them.
        """
        ...

    def exists(self, path: str) -> bool:
        """Return whether a file is there."""
        ...

    def get(self, path: str, limit_bytes: int) -> bytes:
        """Read a file back.

        Raises:
            LinkDropped: If the connection is lost.
            TargetUnavailable: If it is not there or larger than `limit_bytes`.
        """
        ...


def check_word(word: str) -> str:
    """Return a word that no shell interprets.

    Raises:
        RecipeError: If it holds anything else.
    """
    if not _WORD.fullmatch(word) or word.startswith("~"):
        raise RecipeError(
            f"{word!r} cannot be used on a device: letters, digits and _./+=:@%,- are allowed there."
        )
    return word


class LocalTransport:
    """This machine, as if it were the device: for kits' ONNX Runtime path and for tests.

    Args:
        home: The folder that stands for the user's home.
    """

    def __init__(self, home: Path) -> None:
        self._home = home

    def run(
        self,
        words: Sequence[str],
        *,
        on_line: Callable[[str, int], None] | None = None,
        seconds: float = 60.0,
    ) -> tuple[int, str]:
        """Run a program in the home folder."""
        checked = [check_word(word) for word in words]
        return run_process(checked, on_line, seconds, cwd=self._home)

    def put(self, files: Mapping[str, Path], folder: str) -> None:
        """Copy files."""
        for name, source in files.items():
            destination = self._home / check_word(folder) / check_word(name)
            destination.parent.mkdir(parents=True, exist_ok=True)
            part = destination.with_name(destination.name + ".part")
            try:
                shutil.copyfile(source, part)
                os.replace(part, destination)
            except OSError as exc:
                part.unlink(missing_ok=True)
                raise TargetUnavailable(f"{destination} cannot be written: {exc.strerror}.") from exc

    def exists(self, path: str) -> bool:
        """Return whether a file is there."""
        return (self._home / check_word(path)).is_file()

    def get(self, path: str, limit_bytes: int) -> bytes:
        """Read a file."""
        try:
            with (self._home / check_word(path)).open("rb") as stream:
                data = stream.read(limit_bytes + 1)
        except OSError as exc:
            raise TargetUnavailable(f"{path} cannot be read: {exc.strerror}.") from exc
        return _within(data, path, limit_bytes)


class SshTransport:
    """A device behind ssh.

    Args:
        host: Name, address, ``user@host`` or an alias of ``~/.ssh/config``.
        config: Another ssh configuration file; None: the user's.
        connect_seconds: How long one connection may take to be made.

    Raises:
        RecipeError: If the host is no host name.
    """

    def __init__(self, host: str, *, config: Path | None = None, connect_seconds: int = 10) -> None:
        # A name that begins with a dash would be an option.
        if not _HOST.fullmatch(host):
            raise RecipeError(f"{host!r} is no host: expected a name, an address, user@host or an ssh alias.")
        self.host = host
        self._options = ["-F", str(config)] if config is not None else []
        for option in (
            "BatchMode=yes",
            "PasswordAuthentication=no",
            "KbdInteractiveAuthentication=no",
            "StrictHostKeyChecking=yes",
            "UpdateHostKeys=no",
            "ForwardAgent=no",
            "ForwardX11=no",
            "ClearAllForwardings=yes",
            "PermitLocalCommand=no",
            f"ConnectTimeout={connect_seconds}",
            "ConnectionAttempts=1",
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            "LogLevel=ERROR",
        ):
            self._options += ["-o", option]

    def run(
        self,
        words: Sequence[str],
        *,
        on_line: Callable[[str, int], None] | None = None,
        seconds: float = 60.0,
    ) -> tuple[int, str]:
        """Run a program in the user's home."""
        checked = [check_word(word) for word in words]
        code, said = run_process(["ssh", "-T", *self._options, "--", self.host, *checked], on_line, seconds)
        # ssh's own failures end with 255; what runs there must use other codes.
        if code == 255:
            raise self._explain(said)
        return code, said

    def put(self, files: Mapping[str, Path], folder: str) -> None:
        """Send files by sftp: resumed under a temporary name, then renamed."""
        folders = {folder, *(f"{folder}/{name}".rpartition("/")[0] for name in files)}
        made = sorted({"/".join(f.split("/")[: i + 1]) for f in folders for i in range(len(f.split("/")))})
        mkdir = [f"-mkdir {check_word(path)}" for path in made if path]
        small = {name: path for name, path in files.items() if path.stat().st_size < _RESUMED_BYTES}
        if small:
            self._send(mkdir, small, folder, {})
        for name, path in files.items():
            if name not in small:
                part = _part(f"{folder}/{name}", path)
                begun = self.exists(part)
                self._send(mkdir, {name: path}, folder, {name: "reput" if begun else "put"})

    def _send(
        self, mkdir: Sequence[str], files: Mapping[str, Path], folder: str, verbs: Mapping[str, str]
    ) -> None:
        batch, parts = [*mkdir], []
        for name, source in files.items():
            target = check_word(f"{folder}/{name}")
            part = _part(target, source)
            parts.append(part)
            batch += [
                f"{verbs.get(name, 'put')} {_quoted(source)} {part}",
                f"-rm {target}",
                f"rename {part} {target}",
            ]
        try:
            self._sftp(batch)
        except LinkDropped:
            # What has arrived stays, to be gone on with.
            raise
        except TargetUnavailable as exc:
            with contextlib.suppress(TargetUnavailable):
                self._sftp([f"-rm {part}" for part in parts])
            size = sum(path.stat().st_size for path in files.values())
            raise TargetUnavailable(self._no_space(folder, ", ".join(files), size, exc)) from exc

    def exists(self, path: str) -> bool:
        """Return whether a file is there."""
        code, _ = self.run(["test", "-f", path])
        return code == 0

    def get(self, path: str, limit_bytes: int) -> bytes:
        """Read a file through ssh, no more than the limit."""
        command = ["ssh", "-T", *self._options, "--", self.host, "cat", check_word(path)]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
            with ended(process):
                data = process.stdout.read(limit_bytes + 1) if process.stdout is not None else b""
                code = process.wait() if len(data) <= limit_bytes else 0
            errors.seek(0)
            said = errors.read(KEPT_BYTES).decode(errors="replace")
        if code == 255:
            raise self._explain(said)
        if code:
            raise TargetUnavailable(f"{path} cannot be read on {self.host}: {_last(said)}.")
        return _within(data, path, limit_bytes)

    def _sftp(self, batch: Sequence[str]) -> str:
        with tempfile.NamedTemporaryFile("w", suffix=".sftp", encoding="utf-8") as stream:
            stream.write("\n".join(batch) + "\n")
            stream.flush()
            command = ["sftp", "-q", "-b", stream.name, *self._options, "--", self.host]
            # A transfer says nothing while it goes on; a dead link is noticed by the keep-alive.
            code, said = run_process(command, None, 3600.0)
        # When its ssh lost the link, sftp ends with 1 as well, is killed by SIGPIPE, or echoes its command and ends
        # without a reason, whichever comes first.
        silent = _last(said).rpartition(" / ")[2].startswith("sftp> ")
        if code == 255 or code < 0 or (code and (silent or _LINK_LOST.search(said))):
            raise self._explain(said)
        if code:
            raise TargetUnavailable(f"sftp to {self.host} failed: {_last(said)}.")
        return said

    def _no_space(self, folder: str, target: str, size: int, exc: TargetUnavailable) -> str:
        with contextlib.suppress(TargetUnavailable):
            _, said = self.run(["df", "-Pk", folder])
            fields = said.strip().splitlines()[-1].split()
            if len(fields) >= 4 and fields[3].isdigit() and int(fields[3]) * 1024 < size:
                return (
                    f"The disk of {self.host} is full: {target} needs {size} bytes and {int(fields[3]) * 1024} are "
                    "free. Nothing was left half-written. Free some space there and run the same command again."
                )
        return (
            f"{target} cannot be written on {self.host}: {exc} Nothing was left half-written. Look for a full "
            "disk, a quota or a read-only folder there."
        )

    def _explain(self, said: str) -> TargetUnavailable:
        """Return what ssh's own failure means, and what helps."""
        host, text = self.host, _last(said)
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said or "differs from the key" in said:
            return TargetUnavailable(
                f"The host key of {host} is not the one that is known: the connection was refused, because another "
                f"machine may be answering. If the device was set up anew, check its key and run: ssh-keygen -R {host}"
            )
        if "Host key verification failed" in said or "host key is known" in said:
            return TargetUnavailable(
                f"The host key of {host} is not known here: the connection was refused. Connect once by hand and "
                f"compare the fingerprint: ssh {host}"
            )
        if "Permission denied" in said or "Too many authentication failures" in said:
            return TargetUnavailable(
                f"{host} accepts none of your keys ({text}). Passwords are never asked for: ssh-copy-id {host}"
            )
        if (
            "Could not resolve" in said
            or "Bad configuration option" in said
            or "Can't open user config" in said
        ):
            return TargetUnavailable(f"There is no way to {host}: {text}. Check the name and ~/.ssh/config.")
        return LinkDropped(f"The connection to {host} failed: {text or 'ssh gave no reason'}.")


def _within(data: bytes, path: str, limit_bytes: int) -> bytes:
    if len(data) > limit_bytes:
        raise TargetUnavailable(f"{path} is larger than {limit_bytes} bytes; it is not what was asked for.")
    return data


def _last(said: str) -> str:
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
    return "".join(c for c in " / ".join(lines[-2:]) if c.isprintable())[:400].rstrip(".")


def _part(target: str, source: Path) -> str:
    # Named by size and time, so that another version's beginning is not gone on with.
    stat = source.stat()
    return f"{target}.{stat.st_size:x}.{stat.st_mtime_ns:x}.part"


def _quoted(path: Path) -> str:
    """Return a local path as sftp's batch files take it."""
    text = str(path.absolute())
    if not text.isprintable():
        raise RecipeError(f"{text!r} holds a character that sftp cannot name. Move it to another folder.")
    return '"' + re.sub(r'(["\\*?\[\]])', r"\\\1", text) + '"'
