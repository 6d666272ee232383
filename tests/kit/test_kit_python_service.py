"""The Python kit's HTTP service, over real sockets on this machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

Start = Callable[..., Any]


@pytest.fixture(scope="module")
def photograph(demo_kit: Path) -> bytes:
    return (demo_kit / "model" / "images" / "0001.jpg").read_bytes()


@pytest.fixture(scope="module")
def classifier(kit_module: ModuleType, demo_kit: Path) -> Any:
    return kit_module.Classifier(demo_kit / "model", max_pixels=1_000_000)


@pytest.fixture
def start(kit_module: ModuleType, classifier: Any) -> Iterator[Start]:
    """Starts a service on a free port; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start_service(**limits: Any) -> Any:
            service = kit_module.Service(classifier, port=0, limits=kit_module.Limits(**limits))
            thread = threading.Thread(target=service.run)
            thread.start()
            stack.callback(thread.join)
            stack.callback(service.stop)
            return service

        yield start_service


def ask(
    address: tuple[str, int], method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(*address, timeout=30)
    try:
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        response = connection.getresponse()
        content = response.read()
        return response.status, dict(response.getheaders()), json.loads(content)
    finally:
        connection.close()


def send_raw(address: tuple[str, int], data: bytes) -> bytes:
    """Send bytes and return all that comes back until the service closes."""
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := client.recv(1 << 16):
            received += chunk
        return received


def multipart(*parts: bytes) -> tuple[bytes, str]:
    fence = b"--edge\r\nContent-Disposition: form-data; name=i\r\n\r\n"
    body = b"".join(fence + part + b"\r\n" for part in parts) + b"--edge--\r\n"
    return body, "multipart/form-data; boundary=edge"


# --------------------------------------------------------------------------------- what it does


def test_service_of_its_own(
    demo_kit: Path, without_edgeattn: list[str], photograph: bytes, run_kit: Callable[..., Any]
) -> None:
    """Started by its command, without edgeattn: answers as the command does, and ends in peace."""
    command = [*without_edgeattn, str(demo_kit / "edgeattn_classify.py"), "--serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            match = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert match is not None
            address = ("127.0.0.1", int(match.group(1)))
            status, _, answer = ask(address, "POST", "/classify?top=2", photograph)
            assert status == 200
            assert ask(address, "GET", "/health")[2]["status"] == "ok"
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    told = run_kit(demo_kit, "model/images/0001.jpg", "--json", "--top", "2")
    (expected,) = json.loads(told.stdout)
    assert answer["top"] == expected["top"]


def test_batch_answers_in_order(start: Start, photograph: bytes, demo_kit: Path) -> None:
    """A bad image costs only its own answer."""
    service = start()
    second = (demo_kit / "model" / "images" / "0002.jpg").read_bytes()
    body, kind = multipart(second, b"no image\r\n--edg", photograph)
    status, _, answer = ask(service.address, "POST", "/batch", body, Content_Type=kind)
    assert status == 200
    singles = [ask(service.address, "POST", "/classify", data)[2] for data in (second, photograph)]
    assert answer["results"][::2] == singles
    assert "error" in answer["results"][1]


def test_raw_pixels_give_the_same_answer(start: Start, classifier: Any, photograph: bytes) -> None:
    """A client may resize for itself and send the 8-bit pixels."""
    service = start()
    pixels = classifier.pixels(photograph).tobytes()
    raw = ask(service.address, "POST", "/classify", pixels, Content_Type="application/x-rgb8")
    assert raw[0] == 200
    assert raw[2] == ask(service.address, "POST", "/classify", photograph)[2]
    short = ask(service.address, "POST", "/classify", pixels[:-1], Content_Type="application/x-rgb8")
    assert short[0] == 422


def test_one_connection_serves_many_requests(start: Start, photograph: bytes) -> None:
    """Also those sent before the first was answered, and after an error."""
    service = start()
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photograph)}\r\n\r\n".encode()
    wrong = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    received = send_raw(service.address, head + photograph + wrong + head + photograph + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"404", b"200", b"200"]


def test_metrics_count(start: Start, photograph: bytes) -> None:
    """In Prometheus' text format."""
    service = start()
    ask(service.address, "POST", "/classify", photograph)
    ask(service.address, "POST", "/classify", b"broken")
    connection = http.client.HTTPConnection(*service.address, timeout=30)
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert response.getheader("Content-Type", "").startswith("text/plain; version=0.0.4")
    assert 'edgeattn_requests_total{path="/classify",code="200"} 1' in text
    assert 'edgeattn_requests_total{path="/classify",code="422"} 1' in text
    assert "edgeattn_images_total 1" in text
    assert 'edgeattn_request_seconds_bucket{le="+Inf"} 2' in text


# -------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health HTTP/2.0\r\n\r\n", 505),
        (b"GET /health HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nbad name: x\r\n\r\n", 400),
        (b"POST /classify HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /classify HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST /classify HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"GET /health HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 20_000, 431),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"DELETE /classify HTTP/1.1\r\n\r\n", 405),
        (b"POST /classify HTTP/1.1\r\n\r\n", 422),
        (b"POST /classify?top=0 HTTP/1.1\r\n\r\n", 400),
        (b"POST /batch HTTP/1.1\r\n\r\n", 415),
    ],
)
def test_bad_request_is_told_what_is_wrong(start: Start, request_: bytes, status: int) -> None:
    """Each with its status and a sentence, and the service lives on."""
    service = start()
    received = send_raw(service.address, request_)
    assert received.startswith(b"HTTP/1.1 %d " % status), received[:200]
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]
    assert (b"\r\nAllow: POST\r\n" in received) == (status == 405)
    assert ask(service.address, "GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"--edge--\r\n", 400),
        (b"--edge\r\n\r\nx", 400),
        (b"--edge\r\nno empty line", 400),
        (b"preamble\r\n--edge\r\n\r\nx\r\n--edge--", 400),
        (b"--edge" + b"\r\n\r\nx\r\n--edge" * 5 + b"--", 413),
    ],
)
def test_bad_batch_is_refused(start: Start, body: bytes, status: int) -> None:
    """Multipart bodies may be anything."""
    service = start(batch_images=4)
    kind = 'multipart/form-data; boundary="edge"'
    assert ask(service.address, "POST", "/batch", body, Content_Type=kind)[0] == status


def test_huge_image_is_refused_before_decoding(start: Start) -> None:
    """By the size in its header."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("1", (5000, 5000)).save(stream, "PNG")
    service = start()
    assert ask(service.address, "POST", "/classify", stream.getvalue())[0] == 413


def test_slow_clients_are_let_go(
    start: Start, kit_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request must arrive in time, however often a byte comes."""
    for name in ("_HEAD_SECONDS", "_BODY_SECONDS", "_IDLE_SECONDS"):
        monkeypatch.setattr(kit_module, name, 0.5)
    service = start()
    for beginning in (b"GET /hea", b"POST /classify HTTP/1.1\r\nContent-Length: 1000\r\n\r\n"):
        with socket.create_connection(service.address, timeout=30) as client:
            client.sendall(beginning)
            received = b""
            with contextlib.suppress(OSError):  # once it is let go, sending fails
                for _ in range(100):
                    client.sendall(b"x")
                    time.sleep(0.05)
            with contextlib.suppress(OSError):
                received = client.recv(1 << 16)
            assert received == b"" or received.startswith(b"HTTP/1.1 408")
    with socket.create_connection(service.address, timeout=30) as client:
        assert client.recv(1) == b""  # idle: closed without a word
    deadline = time.monotonic() + 20
    while service.connections and time.monotonic() < deadline:
        time.sleep(0.05)
    assert service.connections == 0


# -------------------------------------------------------------------------------------- overload


def test_overload_loses_no_request(start: Start, photograph: bytes) -> None:
    """Every request is answered: with the right classes, or with 429 and when to come again."""
    service = start(pending_images=2)
    expected = ask(service.address, "POST", "/classify", photograph)[2]
    statuses: Counter[int] = Counter()
    wrong: list[Any] = []
    lock = threading.Lock()

    def client() -> None:
        for _ in range(15):
            status, headers, answer = ask(service.address, "POST", "/classify", photograph)
            with lock:
                statuses[status] += 1
                if (status == 200 and answer != expected) or (status == 429 and "Retry-After" not in headers):
                    wrong.append((status, headers, answer))

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert set(statuses) == {200, 429}
    assert statuses.total() == 8 * 15
    assert service.pending.count == 0


def test_too_many_connections_are_told_so(start: Start, photograph: bytes) -> None:
    """And room that is given back is used again."""
    service = start(connections=2)
    held = [socket.create_connection(service.address, timeout=30) for _ in range(2)]
    for client in held:
        client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
    status, headers, _ = ask(service.address, "POST", "/classify", photograph)
    assert (status, headers["Retry-After"]) == (429, "1")
    for client in held:
        client.close()
    deadline = time.monotonic() + 20
    while ask(service.address, "POST", "/classify", photograph)[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_bodies_together_have_a_limit(
    start: Start, kit_module: ModuleType, photograph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many clients that announce much cannot fill the memory."""
    monkeypatch.setattr(kit_module, "_HELD_BYTES", 1 << 20)
    service = start()
    with socket.create_connection(service.address, timeout=30) as client:
        client.sendall(b"POST /classify HTTP/1.1\r\nContent-Length: 1048576\r\n\r\n")
        deadline = time.monotonic() + 20
        while not service.held.count and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ask(service.address, "POST", "/classify", photograph)[0] == 429
    while service.held.count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ask(service.address, "POST", "/classify", photograph)[0] == 200


def test_stopping_answers_what_has_begun(start: Start, photograph: bytes) -> None:
    """A request whose body is still on its way when the signal comes is answered; idle clients are let go."""
    service = start()
    idle = socket.create_connection(service.address, timeout=30)
    idle.sendall(b"GET /health HTTP/1.1\r\n\r\n")
    assert idle.recv(1 << 16).startswith(b"HTTP/1.1 200")
    head = f"POST /classify HTTP/1.1\r\nContent-Length: {len(photograph)}\r\n\r\n".encode()
    with socket.create_connection(service.address, timeout=30) as client:
        client.sendall(head + photograph[:100])
        deadline = time.monotonic() + 20
        while not service.held.count and time.monotonic() < deadline:
            time.sleep(0.01)
        service.stop()
        assert idle.recv(1) == b""
        client.sendall(photograph[100:])
        received = b""
        while chunk := client.recv(1 << 16):
            received += chunk
    assert received.startswith(b"HTTP/1.1 200")
    assert b"Connection: close" in received
    idle.close()


def test_port_that_is_taken(start: Start, kit_module: ModuleType, classifier: Any) -> None:
    """An error in words, not a traceback."""
    service = start()
    with pytest.raises(kit_module.KitError, match="Choose another --port"):
        kit_module.Service(classifier, port=service.address[1])


def test_large_body_may_ask_first(start: Start, photograph: bytes) -> None:
    """curl sends larger bodies only after 100 Continue."""
    service = start()
    head = f"POST /classify HTTP/1.1\r\nContent-Length: {len(photograph)}\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(service.address, timeout=30) as client:
        client.sendall(head.encode())
        assert client.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(photograph)
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
