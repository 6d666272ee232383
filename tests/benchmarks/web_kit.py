"""How fast the web kit is in a real browser: time to the first answer, frames per second, percentiles.

``python -m tests.benchmarks.web_kit --json FILE`` makes the demonstration's kit, serves it as
``python -m http.server`` does, and opens it in headless Chromium with a camera that is simulated. First visits
are those of a browser that was started a second ago and has never seen the page. It wants a machine that does
nothing else.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from chromium import Chromium, Page
from web_server import StaticServer

from edgeattn.kit.write import write_kit
from tests.benchmarks.figures import figures_parser, publish

__all__ = ["main"]

_READY = "window.edgeattnKit?.firstAnswerAt"
_PATIENCE_S = 120.0
# A browser goes on starting after it answers; what is measured is the page.
_BROWSER_START_S = 1.0


def _open(page: Page, url: str) -> dict[str, float]:
    page.open(url)
    first = page.wait(_READY, timeout_s=_PATIENCE_S)
    return {"first_answer_ms": first, **page.run("edgeattnKit.opened")}


def _live(page: Page, heat: str, seconds: float) -> dict[str, Any]:
    page.run(f"document.querySelector('input[value={heat}]').click()")
    # The compiler for hot code takes over during the first frames.
    before = page.run("edgeattnKit.results")
    page.wait(f"edgeattnKit.results > {before} + 30", timeout_s=_PATIENCE_S)
    page.run("edgeattnKit.stats.reset()")
    start, at = page.run("[edgeattnKit.results, performance.now()]")
    page.run(f"new Promise((resolve) => setTimeout(resolve, {1000 * seconds}))", timeout_s=seconds + 30)
    end, until = page.run("[edgeattnKit.results, performance.now()]")
    summary: dict[str, Any] = page.run("edgeattnKit.stats.summary()")
    summary["fps"] = 1000 * (end - start) / (until - at)
    summary["frames"] = end - start
    return summary


def _visits(url: str, count: int) -> dict[str, Any]:
    """Open the page twice in each of `count` new browsers."""
    first, second = [], []
    for _ in range(count):
        with Chromium() as browser, browser.page() as page:
            time.sleep(_BROWSER_START_S)
            first.append(_open(page, url))
            page.wait("document.documentElement.dataset.offline === 'ready'", timeout_s=_PATIENCE_S)
            second.append(_open(page, url))
    return {"first_visit": _summary(first), "second_visit": _summary(second)}


def _summary(visits: list[dict[str, float]]) -> dict[str, Any]:
    times = [visit["first_answer_ms"] for visit in visits]
    return {
        "first_answer_ms": {"median": statistics.median(times), "least": min(times), "most": max(times)},
        "visits": visits,
    }


def measure(kit: Path, seconds: float, visits: int) -> dict[str, Any]:
    """Return what the page measures of itself, and the times of opening it.

    Args:
        kit: Folder of a web kit.
        seconds: How long the camera is classified, for each setting.
        visits: How many new browsers open the page, twice each.
    """
    server = StaticServer(kit)
    try:
        opened = _visits(server.url, visits)
        with Chromium(["--use-fake-device-for-media-stream"]) as browser, browser.page() as page:
            where = {"browserContextId": page.context} if page.context else {}
            browser.call("Browser.setPermission", permission={"name": "camera"}, setting="granted", **where)
            _open(page, server.url)
            page.wait("document.documentElement.dataset.offline === 'ready'", timeout_s=_PATIENCE_S)
            page.run("document.getElementById('camera').click()")
            live = {heat: _live(page, heat, seconds) for heat in ("off", "evidence")}
            model = json.loads((kit / "model/model.json").read_text(encoding="utf-8"))
            return {
                "browser": browser.version,
                "model": model["name"],
                "size": model["preprocess"]["size"],
                **opened,
                "live": live,
            }
    finally:
        server.stop()


def main() -> None:
    """Measure and print."""
    parser = figures_parser(__doc__)
    parser.add_argument("--kit", type=Path, help="a web kit; default: the demonstration's")
    parser.add_argument("--seconds", type=float, default=10.0, help="of live classification (default 10)")
    parser.add_argument("--visits", type=int, default=10, help="new browsers that open the page (default 10)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeattn-web-") as folder:
        kit = arguments.kit
        if kit is None:
            kit = Path(folder) / "kit"
            write_kit("web", None, kit)
        result = measure(kit, arguments.seconds, arguments.visits)
    publish(result, arguments.json)


if __name__ == "__main__":
    main()
