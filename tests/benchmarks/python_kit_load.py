"""Load the Python kit's service and compare it with the engine alone.

    python -m tests.benchmarks.python_kit_load --json FILE

Measured in alternation, on the machine that also runs the clients:

* ``engine``: the network alone, inputs in memory, as many threads as the service has workers;
* ``pipeline``: the same threads decode and preprocess a photograph before each inference;
* ``service_pixels``: clients post 8-bit pixels of the network's size;
* ``service_photographs``: clients post photographs (JPEG);
* ``service_batches``: clients post eight photographs at a time;
* overload: more clients than the service takes; every request must be answered.

The ratio that counts is ``service_pixels`` or ``service_photographs`` over ``engine``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_BATCH = 8


def main() -> None:
    """Measure and print; write JSON if asked."""
    options = _parser().parse_args()
    if options.role:
        sys.stdout.write(json.dumps(_ROLES[options.role](options)) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        kit = options.kit
        if kit is None:
            from edgeattn.kit.write import write_kit

            kit = Path(folder) / "kit"
            write_kit("python", None, kit)
        result = _measure(kit, options)
    # Here, because the processes that measure need nothing of the package.
    from tests.benchmarks.figures import publish

    publish(result, options.json)


def _measure(kit: Path, options: argparse.Namespace) -> dict[str, Any]:
    rates: dict[str, list[float]] = {}
    names = ("engine", "service_pixels", "service_photographs", "service_batches", "pipeline")
    with _Service(kit, options) as address:
        for _ in range(options.rounds):
            for name in names:
                role = name if name in ("engine", "pipeline") else "clients"
                kind = name.partition("_")[2]
                found = _child(kit, options, role, address, ["--send", kind] if kind else [])
                if found.get("lost"):
                    raise SystemExit(f"{name}: requests were lost: {found}")
                rates.setdefault(name, []).append(found["images_per_second"])
    ratios = {
        f"{name}/{base}": statistics.median(a / b for a, b in zip(rates[name], rates[base], strict=True))
        for name in names[1:4]
        for base in ("engine", "pipeline")
    }
    extra = ["--send", "photographs", "--clients", str(8 * options.clients)]
    with _Service(
        kit, options, "--max-pending", "8", "--max-connections", str(4 * options.clients)
    ) as address:
        overload = _child(kit, options, "clients", address, extra)
    return {
        "runtime": options.runtime,
        "workers": options.workers,
        "threads": options.threads,
        "clients": options.clients,
        "seconds": options.seconds,
        "images_per_second": {name: [round(rate, 1) for rate in values] for name, values in rates.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "overload": overload,
    }


class _Service:
    """The kit's service in a process of its own; the context gives its port."""

    def __init__(self, kit: Path, options: argparse.Namespace, *more: str) -> None:
        self._command = [
            *(sys.executable, str(kit / "edgeattn_classify.py"), "--serve", "--port", "0", *more),
            *("--runtime", options.runtime, "--workers", str(options.workers)),
            *("--threads", str(options.threads)),
        ]

    def __enter__(self) -> int:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        match = re.search(r"http://127\.0\.0\.1:(\d+)", self._process.stdout.readline())
        assert match is not None, "the service did not start"
        return int(match.group(1))

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


def _child(
    kit: Path, options: argparse.Namespace, role: str, port: int, more: Sequence[str]
) -> dict[str, Any]:
    command = [
        *(sys.executable, "-m", "tests.benchmarks.python_kit_load", "--role", role, "--kit", str(kit)),
        *("--port", str(port), "--runtime", options.runtime, "--workers", str(options.workers)),
        *("--threads", str(options.threads), "--clients", str(options.clients)),
        *("--seconds", str(options.seconds), *more),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# ------------------------------------------------------------------------------- measured roles


def _classifier(options: argparse.Namespace) -> Any:
    sys.path.insert(0, str(options.kit))
    import edgeattn_classify  # type: ignore[import-not-found]

    return edgeattn_classify.Classifier(runtime=options.runtime, threads=options.threads)


def _photographs(kit: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((kit / "model" / "images").iterdir())]


def _engine(options: argparse.Namespace) -> dict[str, Any]:
    classifier = _classifier(options)
    inputs = [classifier.prepare(data) for data in _photographs(options.kit)]

    def make() -> Callable[[int], None]:
        run = classifier.make_runner()
        return lambda i: run(inputs[i % len(inputs)])

    return _rate(options, options.workers, make)


def _pipeline(options: argparse.Namespace) -> dict[str, Any]:
    classifier = _classifier(options)
    photographs = _photographs(options.kit)

    def make() -> Callable[[int], None]:
        run = classifier.make_runner()
        return lambda i: run(classifier.prepare(photographs[i % len(photographs)]))

    return _rate(options, options.workers, make)


def _rate(
    options: argparse.Namespace, threads: int, make: Callable[[], Callable[[int], None]]
) -> dict[str, Any]:
    """Run calls on `threads` threads for the time, after a warm-up, and return their rate."""
    counts = [0] * threads
    ready, begin = threading.Barrier(threads + 1), threading.Barrier(threads + 1)
    end = [0.0]

    def work(place: int) -> None:
        call = make()
        for i in range(20):
            call(i)
        ready.wait()
        begin.wait()
        while time.perf_counter() < end[0]:
            call(counts[place])
            counts[place] += 1

    workers = [threading.Thread(target=work, args=(place,)) for place in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    started = time.perf_counter()
    end[0] = started + options.seconds
    begin.wait()
    for worker in workers:
        worker.join()
    return {"images_per_second": sum(counts) / (time.perf_counter() - started)}


def _clients(options: argparse.Namespace) -> dict[str, Any]:
    photographs = _photographs(options.kit)
    images = 1
    if options.send == "pixels":
        classifier = _classifier(options)
        requests = [
            _request("/classify", classifier.pixels(data).tobytes(), "application/x-rgb8")
            for data in photographs
        ]
    elif options.send == "photographs":
        requests = [_request("/classify", data, "image/jpeg") for data in photographs]
    else:
        images = _BATCH
        fence = b"--edge\r\nContent-Disposition: form-data; name=i\r\n\r\n"
        body = b"".join(fence + data + b"\r\n" for data in photographs[:_BATCH]) + b"--edge--\r\n"
        requests = [_request("/batch", body, "multipart/form-data; boundary=edge")]
    statuses: Counter[str] = Counter()
    lock = threading.Lock()
    started = time.perf_counter()
    end = started + options.seconds

    def client(first: int) -> None:
        mine: Counter[str] = Counter()
        connection: socket.socket | None = None
        i = first
        while time.perf_counter() < end:
            try:
                if connection is None:
                    connection = socket.create_connection(("127.0.0.1", options.port), timeout=60)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(requests[i % len(requests)])
                status, closed = _answer(connection)
            except OSError:
                status, closed = "lost", True
            mine[status] += 1
            if closed and connection is not None:
                connection.close()
                connection = None
            if status == "429":
                time.sleep(0.02)  # a polite client waits a second; this one tests the refusal
            i += 1
        with lock:
            statuses.update(mine)

    threads = [threading.Thread(target=client, args=(7 * n,)) for n in range(options.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    return {
        "images_per_second": images * statuses["200"] / seconds,
        "requests": statuses.total(),
        "answered_200": statuses["200"],
        "answered_429": statuses["429"],
        "lost": statuses.total() - statuses["200"] - statuses["429"],
    }


def _request(path: str, body: bytes, kind: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _answer(connection: socket.socket) -> tuple[str, bool]:
    """Read one answer; return its status and whether the service closes."""
    received = b""
    while (end := received.find(b"\r\n\r\n")) < 0:
        chunk = connection.recv(1 << 16)
        if not chunk:
            return "lost", True
        received += chunk
    head = received[:end]
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    missing = length - (len(received) - end - 4)
    while missing > 0:
        chunk = connection.recv(1 << 16)
        if not chunk:
            return "lost", True
        missing -= len(chunk)
    status = head[9:12].decode()
    if status == "429" and b"Retry-After:" not in head:
        return "no Retry-After", True
    return status, b"Connection: close" in head


_ROLES = {"engine": _engine, "pipeline": _pipeline, "clients": _clients}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--kit", type=Path, help="a Python kit; default: the demonstration's")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--role", choices=("engine", "pipeline", "clients"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--send", choices=("pixels", "photographs", "batches"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
