#!/usr/bin/env python3
"""Build, check and measure the model of this kit on this device, and write result.json.

Needs Python 3.10 and NumPy, and TensorRT 10 or newer (its Python bindings or trtexec) or ONNX Runtime. Works
offline and as an ordinary user. Running it again resumes: a finished step is not repeated.

    python3 run.py                    what is in job.json: build, check, measure
    python3 run.py --runtime ort      with ONNX Runtime, on any machine
    python3 run.py --check            say what this machine has and lacks; build nothing
    python3 run.py --detach           the same in the background; it outlives the terminal
    python3 run.py --follow           show the background run's log; ends with its exit code

Exit codes: 0 done; 1 failed; 2 the job is not valid; 3 something is missing here; 4 the outputs are not the
expected ones; 75 (--follow) the background run is gone without a result: start it again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
# On a full disk Python leaves half of a compiled module behind, and fails on it the next time.
sys.dont_write_bytecode = True

from files import write_atomic, write_json  # noqa: E402 - after the path

GONE = 75


def run_job(job_path: Path, runtime: str | None, again: bool) -> int:
    """Run a job and return the exit code."""
    # NumPy and the runtimes load here, so that the commands around a background run are quick.
    from job import Job, JobError, Run

    try:
        job = Job(job_path)
    except JobError as exc:
        print(f"error: {exc}", flush=True)
        return 2
    result = Run(job, runtime, again).result()
    try:
        write_json(job.folder / "result.json", result)
    except OSError as exc:
        print(
            f"error: result.json cannot be written: {exc.strerror}; nothing was left half-written", flush=True
        )
        return 1
    if result["status"] == "ok":
        print(f"done: {job.folder / 'result.json'}", flush=True)
        return 0
    error = result["error"]
    print(f"error: {error['message']}", flush=True)
    return {"lacking": 3, "mismatch": 4, "job": 2}.get(error["kind"], 1)


def check_here() -> int:
    """Print what this machine has and lacks."""
    from failures import Lacking
    from machine import describe_machine, read_state, support
    from runtimes import choose_runtime

    print(json.dumps({"machine": describe_machine(), "state": read_state()}, indent=1))
    found = 0
    for name in ("tensorrt", "trtexec", "ort"):
        try:
            runtime = choose_runtime(name, {"optimization_level": None, "tf32": True, "threads": 1})
        except Lacking as exc:
            print(f"{name}: no: {exc}")
            continue
        found += 1
        said = support(describe_machine(), runtime.version) if name != "ort" else {}
        print(f"{name}: yes, {runtime.version}" + (f" ({said['why']})" if said else ""))
        runtime.close()
    return 0 if found else 3


# ------------------------------------------------------------------- background runs


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process began, in ticks after boot: with its number it names it for good."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return ""
    # A zombie has ended.
    return "" if fields[0] in ("Z", "X") else fields[19]


def _running(folder: Path) -> int | None:
    try:
        value = json.loads((folder / "process.json").read_text(encoding="utf-8"))
        pid = int(value["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    alive = value.get("boot") == _boot() and value.get("started") and value.get("started") == _started(pid)
    return pid if alive else None


def _finished_well(folder: Path) -> bool:
    try:
        return (folder / "exit").read_text(encoding="ascii") == "0" and (folder / "result.json").is_file()
    except OSError:
        return False


def detach(job_path: Path, runtime: str | None, again: bool) -> int:
    """Start a job in the background unless it is running or done."""
    folder = job_path.parent
    # A run that has left its exit code is over, though its process may live a moment longer.
    if _running(folder) is not None and not (folder / "exit").is_file():
        print("@running", flush=True)
        return 0
    if not again and _finished_well(folder):
        print("@finished", flush=True)
        return 0
    for name in ("exit", "result.json"):
        if (folder / name).exists():
            (folder / name).unlink()
    # An interpreter behind a wrapper is started by the wrapper again, if that says where it is.
    command = [os.environ.get("EDGEATTN_PYTHON") or sys.executable, str(HERE / "run.py")]
    command += ["--job", str(job_path), "--record"]
    command += ["--runtime", runtime] if runtime else []
    command += ["--again"] if again else []
    with (folder / "log").open("ab") as log, open(os.devnull, "rb") as nothing:
        process = subprocess.Popen(
            command, stdin=nothing, stdout=log, stderr=log, cwd=str(HERE), start_new_session=True
        )
    write_json(
        folder / "process.json", {"pid": process.pid, "started": _started(process.pid), "boot": _boot()}
    )
    print("@started", flush=True)
    return 0


def follow(folder: Path, offset: int) -> int:
    """Print the log from `offset` on until the run ends; return its exit code, or GONE."""
    log = folder / "log"
    while True:
        alive = _running(folder) is not None
        if log.is_file():
            with log.open("rb") as stream:
                stream.seek(offset)
                data = stream.read(1 << 20)
            offset += len(data)
            if data:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
                continue
        if (folder / "exit").is_file():
            return int((folder / "exit").read_text(encoding="ascii"))
        if not alive:
            return GONE
        time.sleep(0.2)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--job", type=Path, default=HERE / "job.json", help="the job; default job.json")
    parser.add_argument(
        "--runtime", choices=("auto", "tensorrt", "trtexec", "ort"), help="instead of the job's"
    )
    parser.add_argument("--again", action="store_true", help="repeat finished steps")
    parser.add_argument("--check", action="store_true", help="say what is here and what is missing")
    parser.add_argument("--detach", action="store_true", help="run in the background")
    parser.add_argument("--follow", action="store_true", help="show a background run until it ends")
    parser.add_argument("--offset", type=int, default=0, help="of the log, in bytes, for --follow")
    parser.add_argument("--record", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    job = arguments.job.resolve()
    try:
        if arguments.check:
            return check_here()
        if arguments.detach:
            code = detach(job, arguments.runtime, arguments.again)
            if code or not arguments.follow:
                return code
        if arguments.follow:
            return follow(job.parent, arguments.offset)
        # A closed terminal ends a run in the foreground only.
        if arguments.record:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        code = run_job(job, arguments.runtime, arguments.again)
        if arguments.record:
            write_atomic(job.parent / "exit", str(code).encode())
        return code
    except OSError as exc:
        print(f"error: {exc.strerror or exc}: {exc.filename or ''}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
