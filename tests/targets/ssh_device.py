"""A device for tests: a real sshd on loopback with keys of its own, and a wire to it that can be cut."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").is_file() else None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Wire:
    """Forwards one port to another; `cut` ends every connection, and refuses new ones until `mend`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[socket.socket] = []
        self._whole = True
        self.cuts = 0
        self.budget: int | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole = False
        self.cuts += 1
        for end in self._pairs:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def mend(self) -> None:
        self._whole = True

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._whole:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._pairs += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink, sink is far), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                if upwards and self.budget is not None:
                    self.budget -= len(data)
                    if self.budget < 0:
                        self.budget = None
                        self.cut()
                        threading.Timer(0.5, self.mend).start()
                        break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.close()


class SshDevice:
    """One sshd, its wire, and the ssh configuration that leads there under the alias ``device``."""

    def __init__(self, folder: Path) -> None:
        if SSHD is None or shutil.which("ssh") is None or shutil.which("sftp") is None:
            pytest.skip("needs an ssh server and client: apt-get install openssh-server openssh-client")
        self.folder = folder
        self._port = free_port()
        for name in ("host", "other", "user", "stranger"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        self.wire = Wire(self._port)
        self.config = folder / "ssh_config"
        self.home = folder / "home"
        self.home.mkdir()
        self.write_known_hosts("host")
        self.write_config("user")
        self._process: subprocess.Popen[bytes] | None = None
        self.start("host")

    def write_known_hosts(self, name: str | None) -> None:
        key = (self.folder / f"{name}.pub").read_text() if name else ""
        text = f"[127.0.0.1]:{self.wire.port} {key}" if name else ""
        (self.folder / "known_hosts").write_text(text)

    def write_config(self, identity: str) -> None:
        self.config.write_text(
            "Host device\n"
            "  HostName 127.0.0.1\n"
            f"  Port {self.wire.port}\n"
            f"  User {getpass.getuser()}\n"
            f"  IdentityFile {self.folder / identity}\n"
            "  IdentitiesOnly yes\n"
            "  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.folder / 'known_hosts'}\n"
            "  GlobalKnownHostsFile /dev/null\n"
        )

    def start(self, host_key: str) -> None:
        """Start the server, in place of one that runs."""
        self.stop()
        (self.folder / "sshd_config").write_text(
            f"Port {self._port}\n"
            "ListenAddress 127.0.0.1\n"
            f"HostKey {self.folder / host_key}\n"
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}\n"
            f"PidFile {self.folder / 'pid'}\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "PermitRootLogin yes\nMaxStartups 50\nSubsystem sftp internal-sftp\n"
        )
        if os.getuid() == 0:
            # Debian's sshd wants its own empty folder, which a system service would have made.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        log = (self.folder / "sshd.log").open("ab")
        self._process = subprocess.Popen(
            [str(SSHD), "-D", "-e", "-f", str(self.folder / "sshd_config")], stdout=log, stderr=log
        )
        log.close()
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 0.2):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        pytest.skip(f"sshd does not start here: {(self.folder / 'sshd.log').read_text()[-300:]}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def close(self) -> None:
        self.wire.close()
        self.stop()
