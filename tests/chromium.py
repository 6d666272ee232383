"""Drives a real Chromium by its DevTools protocol over a pipe: no port, no package, no driver binary."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Chromium", "Page", "find_chromium"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--mute-audio",
    "--window-size=1280,900",
)


def find_chromium() -> str | None:
    """Return the browser's path (EDGEATTN_CHROMIUM, or a usual name on PATH), or None."""
    wanted = os.environ.get("EDGEATTN_CHROMIUM")
    return wanted or next((found for name in _NAMES if (found := shutil.which(name))), None)


class BrowserError(RuntimeError):
    """The browser answered a command with an error, or not in time."""


class Chromium:
    """A headless browser with its own empty profile; a context manager.

    Args:
        flags: Added to the command line.
    """

    def __init__(self, flags: Sequence[str] = ()) -> None:
        program = find_chromium()
        if program is None:
            raise FileNotFoundError("no Chromium: install the package chromium, or set EDGEATTN_CHROMIUM")
        self._profile = tempfile.mkdtemp(prefix="edgeattn-chromium-")
        to_browser_end, self._write = os.pipe()
        self._read, from_browser_end = os.pipe()
        command = [program, *_FLAGS, *flags, f"--user-data-dir={self._profile}"]
        command += ["--remote-debugging-pipe", "about:blank"]
        # The browser reads commands from descriptor 3 and writes answers to 4, wherever ours lie.
        script = f'exec 3<&{to_browser_end} 4>&{from_browser_end}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "chromium", *command],
            pass_fds=(to_browser_end, from_browser_end),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser_end)
        os.close(from_browser_end)
        self._buffer = b""
        self._next_id = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.version = self.call("Browser.getVersion", timeout_s=60)["product"]

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and remove its profile."""
        with contextlib.suppress(Exception):
            self.call("Browser.close", timeout_s=5)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, *, session: str = "", timeout_s: float = 30, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._next_id += 1
        number = self._next_id
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        deadline = time.monotonic() + timeout_s
        while number not in self._answers:
            self._receive(deadline, method)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error'].get('message')}")
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self, deadline: float, waiting_for: str) -> None:
        ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise BrowserError(f"{waiting_for}: no answer in time")
        chunk = os.read(self._read, 1 << 20)
        if not chunk:
            raise BrowserError(f"{waiting_for}: the browser ended (exit code {self._process.poll()})")
        *messages, self._buffer = (self._buffer + chunk).split(b"\0")
        for raw in messages:
            message = json.loads(raw)
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self.events.append(message)

    @contextlib.contextmanager
    def page(self, width: int = 1280, height: int = 900, *, isolated: bool = True) -> Iterator[Page]:
        """Open a tab, by default in a context of its own (no cookies, caches or permissions of others)."""
        context = self.call("Target.createBrowserContext")["browserContextId"] if isolated else None
        where = {"browserContextId": context} if context else {}
        target = self.call("Target.createTarget", url="about:blank", **where)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, context)
        try:
            for domain in ("Page", "Runtime", "Log"):
                page.call(f"{domain}.enable")
            page.resize(width, height)
            yield page
        finally:
            self.call("Target.closeTarget", targetId=target)
            if context:
                self.call("Target.disposeBrowserContext", browserContextId=context)


class Page:
    """One tab."""

    def __init__(self, browser: Chromium, session: str, context: str | None) -> None:
        self.browser = browser
        self.context = context
        self._session = session

    def call(self, method: str, *, timeout_s: float = 30, **params: Any) -> dict[str, Any]:
        """Send a command to this tab."""
        return self.browser.call(method, session=self._session, timeout_s=timeout_s, **params)

    def resize(self, width: int, height: int, *, scale: float = 1.0, mobile: bool = False) -> None:
        """Give the page a viewport in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=mobile,
        )

    def open(self, url: str) -> None:
        """Start loading a page; the caller waits for what it needs of it."""
        result = self.call("Page.navigate", url=url)
        if result.get("errorText"):
            raise BrowserError(f"{url}: {result['errorText']}")

    def before_load(self, script: str) -> None:
        """Run a script in every document before its own scripts."""
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def run(self, expression: str, *, timeout_s: float = 30) -> Any:
        """Evaluate JavaScript (awaiting a promise) and return its JSON value."""
        result = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
            timeout_s=timeout_s,
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            text = details.get("exception", {}).get("description") or details.get("text")
            raise BrowserError(f"{expression[:80]}: {text}")
        return result["result"].get("value")

    def wait(self, expression: str, *, timeout_s: float = 20) -> Any:
        """Return the expression's value once it is truthy.

        Raises:
            BrowserError: If it is not within the time; what the page said is part of the message.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            # While a page loads, its execution context may vanish under the expression.
            with contextlib.suppress(BrowserError):
                if value := self.run(expression):
                    return value
            time.sleep(0.02)
        raise BrowserError(f"{expression} did not hold within {timeout_s} s; console: {self.console()[-8:]}")

    def console(self) -> list[str]:
        """Return what scripts wrote to the console and what the browser complained about, so far."""
        lines = []
        for event in self.browser.events:
            params = event.get("params", {})
            if event.get("sessionId") != self._session:
                continue
            if event["method"] == "Runtime.consoleAPICalled":
                said = " ".join(str(a.get("value", a.get("description", ""))) for a in params["args"])
                lines.append(f"{params['type']}: {said}")
            elif event["method"] == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                said = details.get("exception", {}).get("description", details.get("text", ""))
                lines.append(f"exception: {said}")
            elif event["method"] == "Log.entryAdded":
                entry = params["entry"]
                lines.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}".strip())
        return lines

    def screenshot(self) -> bytes:
        """Return the viewport as PNG."""
        import base64

        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def set_files(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in a file input, as a user does in the dialogue."""
        document = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])
