"""TensorRT by its command-line program, told to build and measure the same thing in version 10 and 11."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from failures import OLDEST_TENSORRT, Lacking, RuntimeFailed

__all__ = ["TrtExec", "trtexec_build_flags", "trtexec_time_flags"]


def trtexec_build_flags(version: tuple, options: dict) -> list:
    """Return the flags that make trtexec build the same engine in 10.x and 11.x."""
    # 11 types every network strongly and has no flag for it.
    flags = ["--stronglyTyped"] if version < (11,) else []
    if options["optimization_level"] is not None:
        flags.append(f"--builderOptimizationLevel={options['optimization_level']}")
    if not options["tf32"]:
        flags.append("--noTF32")
    return [*flags, "--profilingVerbosity=detailed", "--skipInference"]


def trtexec_time_flags(version: tuple, plan: dict) -> list:
    """Return the flags that make trtexec measure the same thing in 10.x and 11.x.

    By default 10.x spins not, copies inputs and outputs and uses no CUDA graph; 11.x spins, copies nothing and
    uses one. Here both spin, copy nothing and use no graph, as this kit's Python path does.
    """
    # 10.x measures so with two flags; 11.x does both by itself and has a flag against its graph.
    same = ["--noDataTransfers", "--useSpinWait"] if version < (11,) else ["--noCudaGraph"]
    return [
        *same,
        "--warmUp=500",
        f"--iterations={plan['min_runs']}",
        "--duration=0",
        "--avgRuns=1",
        "--infStreams=1",
        "--percentile=50,90,99",
    ]


class TrtExec:
    """TensorRT by its command-line program, where the Python bindings are missing."""

    name = "trtexec"
    suffix = ".plan"
    clock = "trtexec's GPU compute time: spin wait, no data transfers, no CUDA graph"
    places = ("/usr/src/tensorrt/bin/trtexec", "/usr/local/tensorrt/bin/trtexec")

    def __init__(self, options: dict):
        found = shutil.which("trtexec") or next((p for p in self.places if Path(p).is_file()), None)
        if found is None:
            raise Lacking("trtexec is not installed: sudo apt-get install libnvinfer-bin")
        self._program, self._options = found, options
        banner = self._run(["--help"], check=False)
        match = re.search(r"TensorRT v(\d{4,6})", banner)
        if match is None:
            raise Lacking(f"{found} does not say its version")
        digits = match.group(1)
        # 10.3.0 is v100300, 8.6.1 is v8601.
        parts = (
            (digits[:-4], digits[-4:-2], digits[-2:])
            if len(digits) > 4
            else (digits[0], digits[1], digits[2:])
        )
        self._numbers = tuple(int(part) for part in parts)
        self.version = ".".join(map(str, self._numbers))
        if self._numbers < OLDEST_TENSORRT:
            raise Lacking(
                f"TensorRT {self.version} has no strongly typed networks; JetPack 6 brings TensorRT 10"
            )
        self.key = f"trtexec-{self.version}-{options['optimization_level']}-{options['tf32']}"

    def build(self, model: Path, engine: Path, say) -> None:
        """Build the engine."""
        say("building with trtexec: minutes on a small module")
        flags = trtexec_build_flags(self._numbers, self._options)
        self._run([f"--onnx={model}", f"--saveEngine={engine}", *flags])

    def open(self, engine: Path, inputs: dict, outputs: dict) -> None:
        """Remember what to run."""
        self._engine, self._inputs, self._outputs = engine, inputs, outputs

    def infer(self, feeds: dict) -> dict:
        """Run once: a process each time."""
        with tempfile.TemporaryDirectory(prefix="edgeattn-") as folder:
            loads = []
            for index, (name, array) in enumerate(feeds.items()):
                path = Path(folder) / f"{index}.bin"
                path.write_bytes(np.ascontiguousarray(array, np.float32).tobytes())
                loads.append(f"{name}:{path}")
            out = Path(folder) / "out.json"
            self._run(
                [
                    f"--loadEngine={self._engine}",
                    f"--loadInputs={','.join(loads)}",
                    f"--exportOutput={out}",
                    "--iterations=1",
                    "--duration=0",
                    "--warmUp=0",
                ]
            )
            found = {item["name"]: item["values"] for item in json.loads(out.read_text())}
        return {
            name: np.array(found[name], np.float32).reshape(shape) for name, shape in self._outputs.items()
        }

    def time(self, feeds: dict, plan: dict) -> list:
        """Return the GPU compute time of each run, from trtexec's own record."""
        with tempfile.TemporaryDirectory(prefix="edgeattn-") as folder:
            times = Path(folder) / "times.json"
            flags = trtexec_time_flags(self._numbers, plan)
            self._run([f"--loadEngine={self._engine}", f"--exportTimes={times}", *flags])
            records = json.loads(times.read_text())
        return [int(record["computeMs"] * 1e6) for record in records]

    def layers(self, feeds: dict, runs: int) -> list:
        """Return nothing: ask the Python path."""
        return []

    def close(self) -> None:
        """Do nothing."""

    def _run(self, arguments: list, check: bool = True) -> str:
        done = subprocess.run(
            [self._program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if check and done.returncode:
            lines = [line for line in done.stdout.splitlines() if "[E]" in line] or done.stdout.splitlines()
            raise RuntimeFailed(f"trtexec failed: {' / '.join(lines[-3:])[:800]}")
        return done.stdout
