"""How fast the C++ kit is: from start to printed answer, with and without its cache, and its frames against the engine.

``python -m tests.benchmarks.cpp_kit --json FILE`` makes the demonstration's kit and builds it as its README says. A
start is timed around the whole process, from the call that makes it to its end. It wants a machine that does nothing
else.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cpp_kit_tools import build

from edgeattn.kit.write import write_kit
from tests.benchmarks.figures import figures_parser, publish

__all__ = ["main"]


def _run(command: list[str]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return answer


def _starts(command: list[str], count: int, *, cached: bool) -> dict[str, Any]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        answer = _run(command)
        times.append(time.perf_counter() - began)
        if answer["from_cache"] is not cached or not answer["images"][0]["top"]:
            raise RuntimeError(f"not the start that was to be measured: {answer}")
    return {
        "starts": count,
        "median_s": statistics.median(times),
        "least_s": min(times),
        "most_s": max(times),
    }


def measure(kit: Path, starts: int, runs: int) -> dict[str, Any]:
    """Return the times of starts and frames of a kit that was built in its folder `build`.

    Args:
        kit: Folder of a C++ kit.
        starts: How many starts with a cache; without one, a quarter of them.
        runs: Inferences and frames, in alternation.
    """
    command = [str(kit / "build/edgeattn-classify"), "--model", str(kit / "model"), "--json"]
    image = str(kit / "model/images/0001.jpg")
    cache = ["--cache", str(kit / "build/cache")]
    first = _run([*command, *cache, image])
    return {
        "runtime": first["runtime"],
        "threads": first["threads"],
        "start_with_cache": _starts([*command, *cache, image], starts, cached=True),
        "start_without_cache": _starts([*command, "--no-cache", image], max(1, starts // 4), cached=False),
        "frame": _run([*command, *cache, "--bench", str(runs), image])["bench"],
    }


def main() -> None:
    """Build, measure and print."""
    parser = figures_parser(__doc__)
    parser.add_argument("--starts", type=int, default=40, help="of the program (default 40)")
    parser.add_argument("--runs", type=int, default=1000, help="of the engine and of frames (default 1000)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeattn-cpp-") as folder:
        kit = Path(folder) / "kit"
        write_kit("cpp", None, kit)
        build(kit, "build", "-DEAK_TESTS=OFF")
        result = measure(kit, arguments.starts, arguments.runs)
    publish(result, arguments.json)


if __name__ == "__main__":
    main()
