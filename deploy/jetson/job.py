"""One job: build the engine, check its outputs, run inputs, measure; each finished step is kept."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from pathlib import Path

import numpy as np
from failures import Lacking, RuntimeFailed
from files import write_json
from machine import describe_machine, read_state, support
from runtimes import choose_runtime

__all__ = ["Job", "JobError", "Run"]

HERE = Path(__file__).resolve().parent
SCHEMA_VERSION = 1
# Of kernels that round differently, not of a mistake: as many answers may differ from the expected ones.
LEAST_AGREEMENT = 0.9
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,7}")


class JobError(Exception):
    """The job or one of its files is not valid."""


class Mismatch(Exception):
    """The outputs are not the expected ones."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


class Job:
    """A job file and the folder of its results.

    Args:
        path: ``job.json``; files that it names lie below its folder, or below the kit's with ``"kit": true``.
    """

    def __init__(self, path: Path):
        self.path, self.folder = path, path.parent
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value["schema_version"] != SCHEMA_VERSION:
                raise JobError(
                    f"schema_version is {value['schema_version']!r}, this kit knows {SCHEMA_VERSION}"
                )
            self.id = str(value["id"])
            self.runtime = str(value["runtime"])
            self.model = value["model"]
            options = value.get("options", {})
            self.options = {
                "optimization_level": options.get("optimization_level"),
                "tf32": bool(options.get("tf32", True)),
                "threads": int(options.get("threads", 1)),
            }
            self.engine_sha256 = value.get("engine_sha256")
            self.reference = value.get("reference")
            self.feeds = value.get("feeds")
            self.timing = value.get("timing")
            self.layers = int(value.get("layers", 0))
            self.inputs = {self.model["input"]["name"]: [int(d) for d in self.model["input"]["shape"]]}
            self.outputs = {self.model["output"]["name"]: [int(d) for d in self.model["output"]["shape"]]}
        except FileNotFoundError as exc:
            raise JobError(f"there is no {path}") from exc
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise JobError(f"{path} is not a valid job: {exc!r}") from exc
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,80}", self.id):
            raise JobError(f"id is {self.id!r}")

    def file(self, entry: dict) -> Path:
        """Return a named file after checking its hash."""
        name = str(entry.get("file"))
        if not _NAME.fullmatch(name):
            raise JobError(f"{name!r} is no plain path")
        path = (HERE if entry.get("kit") else self.folder) / name
        if not path.is_file():
            raise JobError(f"the file {name} is missing: copy the kit again")
        if sha256(path) != entry.get("sha256"):
            raise JobError(f"the file {name} was changed or is incomplete: copy the kit again")
        return path


class Run:
    """One job on this machine.

    Args:
        job: What to do.
        runtime: Another runtime than the job's, or None.
        again: Forget earlier steps of the job.
    """

    def __init__(self, job: Job, runtime: str | None, again: bool):
        self._job, self._name, self._again = job, runtime or job.runtime, again
        self._kept = job.folder / "steps.json"
        self._steps: dict = {}
        planned = ("build", job.reference, job.feeds, job.timing, job.layers)
        self._total, self._done = sum(map(bool, planned)), 0

    def result(self) -> dict:
        """Do what is left, and return the result."""
        job = self._job
        result: dict = {
            "schema_version": SCHEMA_VERSION,
            "id": job.id,
            "status": "ok",
            "error": None,
            "machine": describe_machine(),
        }
        try:
            model = job.file(job.model)
            runtime = choose_runtime(self._name, job.options)
            result["runtime"] = {"name": runtime.name, "version": runtime.version}
            if runtime.name != "ort":
                result["support"] = support(result["machine"], runtime.version)
            try:
                self._load_steps(runtime)
                engine = self._build(runtime, model, result)
                self._measure(runtime, engine, result)
            finally:
                runtime.close()
        except Lacking as exc:
            result.update(status="failed", error={"kind": "lacking", "message": str(exc)})
        except JobError as exc:
            result.update(status="failed", error={"kind": "job", "message": str(exc)})
        except RuntimeFailed as exc:
            result.update(status="failed", error={"kind": "runtime", "message": str(exc)[:2000]})
        except Mismatch as exc:
            result.update(status="failed", error={"kind": "mismatch", "message": str(exc)})
        except OSError as exc:
            full = exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            text = "the disk is full; nothing was left half-written" if full else str(exc)
            result.update(status="failed", error={"kind": "disk" if full else "system", "message": text})
        return result

    def _say(self, text: str) -> None:
        print(f"[{self._done}/{self._total}] {text}", flush=True)

    def _load_steps(self, runtime) -> None:
        # Steps belong to one job, runtime and version: after an update of TensorRT all of them are due again.
        self._key = {"job": sha256(self._job.path), "runtime": runtime.key}
        if self._again or not self._kept.is_file():
            return
        try:
            kept = json.loads(self._kept.read_text(encoding="utf-8"))
            if kept["key"] == self._key:
                self._steps = kept["steps"]
        except (ValueError, KeyError, TypeError):
            self._steps = {}

    def _step(self, name: str, text: str, do, show):
        before = name in self._steps
        if not before:
            self._say(text)
            self._steps[name] = do()
            write_json(self._kept, {"key": self._key, "steps": self._steps})
        self._done += 1
        self._say(f"{text}{' (done before)' if before else ''}: {show(self._steps[name])}")
        return self._steps[name]

    def _build(self, runtime, model: Path, result: dict) -> Path:
        job = self._job
        key = hashlib.sha256(f"{job.model['sha256']}-{runtime.key}".encode()).hexdigest()[:24]
        engine = HERE / "engines" / f"{key}{runtime.suffix}"
        note = engine.with_suffix(".json")
        self._say(f"building the engine with {runtime.name} {runtime.version}")
        described = None
        if engine.is_file() and note.is_file() and not (self._again and job.engine_sha256 is None):
            try:
                described = json.loads(note.read_text(encoding="utf-8"))
                if described["sha256"] != sha256(engine):
                    described = None
            except (ValueError, KeyError, TypeError):
                described = None
        if job.engine_sha256 is not None and (described or {}).get("sha256") != job.engine_sha256:
            raise JobError("the engine that this job is about is no longer on this device: build it again")
        resumed = described is not None
        if described is None:
            started = time.monotonic()
            engine.parent.mkdir(exist_ok=True)
            part = engine.with_name(f".{os.getpid()}.{engine.name}")
            try:
                runtime.build(model, part, self._say)
                described = {
                    "sha256": sha256(part),
                    "size_bytes": part.stat().st_size,
                    "seconds": time.monotonic() - started,
                }
                os.replace(part, engine)
            finally:
                if part.exists():
                    part.unlink()
            write_json(note, described)
        self._done += 1
        self._say("the engine was there" if resumed else f"the engine is built: {described['seconds']:.1f} s")
        result["engine"] = {"file": f"engines/{engine.name}", "resumed": resumed, **described}
        return engine

    def _measure(self, runtime, engine: Path, result: dict) -> None:
        job = self._job
        if not (job.reference or job.feeds or job.timing or job.layers):
            return
        runtime.open(engine, job.inputs, job.outputs)
        if job.reference:
            result["reference"] = self._step(
                "reference", "checking the outputs", lambda: self._check(runtime), _show_reference
            )
            if not result["reference"]["passed"]:
                raise Mismatch(
                    f"{result['reference']['agreement']:.1%} of {result['reference']['n']} images get the expected "
                    f"class, at least {LEAST_AGREEMENT:.0%} are expected"
                )
        if job.feeds:
            result["outputs"] = self._step(
                "feeds",
                "running the inputs",
                lambda: self._infer(runtime),
                lambda done: f"{done['shape'][0]}",
            )
        if job.timing:
            result["timing"] = self._step("timing", "measuring", lambda: self._time(runtime), _show_timing)
        if job.layers:
            name, shape = next(iter(job.inputs.items()))
            feeds = {name: np.zeros(shape, np.float32)}
            result["layers"] = self._step(
                "layers",
                "profiling",
                lambda: runtime.layers(feeds, job.layers),
                lambda found: f"{len(found)} layers",
            )

    def _check(self, runtime) -> dict:
        job = self._job
        expected = json.loads(job.file(job.reference["expected"]).read_text(encoding="utf-8"))
        pixels = np.load(job.file(job.reference["pixels"]), allow_pickle=False)
        mean, std = (np.array(job.reference[key], np.float32) for key in ("mean", "std"))
        (name,), (output,) = job.inputs, job.outputs
        same, right, labelled, largest = 0, 0, 0, 0.0
        images = expected["images"]
        if len(images) != len(pixels):
            raise JobError(f"{len(images)} expected outputs for {len(pixels)} images")
        for index, (image, picture) in enumerate(zip(images, pixels, strict=True)):
            if hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest() != image["pixels_sha256"]:
                raise JobError(f"image {index} is not the one that the outputs were computed from")
            x = (picture.astype(np.float32) / np.float32(255) - mean) / std
            feeds = {name: np.ascontiguousarray(x.transpose(2, 0, 1)[None])}
            logits = runtime.infer(feeds)[output].reshape(-1)
            same += int(logits.argmax()) == image["top1"]
            if image["label"] is not None:
                labelled += 1
                right += int(logits.argmax()) == image["label"]
            largest = max(largest, float(np.abs(logits - np.array(image["logits"])).max()))
        n = len(images)
        return {
            "n": n,
            "agreement": same / n,
            "top1": right / labelled if labelled else None,
            "max_abs_diff": largest if np.isfinite(largest) else None,
            "tolerance": expected.get("tolerance"),
            "runtime": expected["runtime"],
            "passed": same / n >= LEAST_AGREEMENT,
        }

    def _infer(self, runtime) -> dict:
        job = self._job
        batch = np.load(job.file(job.feeds), allow_pickle=False)
        (name, shape), (output, out_shape) = *job.inputs.items(), *job.outputs.items()
        if batch.dtype != np.float32 or list(batch.shape[1:]) != shape[1:] or shape[0] != 1:
            raise JobError(f"feeds are {batch.dtype} {batch.shape}; expected float32 of (N, {shape[1:]})")
        rows = np.empty((len(batch), *out_shape[1:]), np.float32)
        spoken = time.monotonic()
        for index, image in enumerate(batch):
            rows[index] = runtime.infer({name: image[None]})[output][0]
            if time.monotonic() - spoken > 2:
                spoken = time.monotonic()
                self._say(f"running the inputs: {index + 1} of {len(batch)}")
        path = job.folder / "outputs.npy"
        part = job.folder / f".{os.getpid()}.outputs.npy"
        try:
            np.save(part, rows)
            os.replace(part, path)
        finally:
            if part.exists():
                part.unlink()
        return {"file": path.name, "sha256": sha256(path), "shape": list(rows.shape)}

    def _time(self, runtime) -> dict:
        job = self._job
        plan = {
            "warmup_runs": int(job.timing["warmup_runs"]),
            "min_runs": int(job.timing["min_runs"]),
            "min_seconds": float(job.timing["min_seconds"]),
        }
        before = read_state()
        name, shape = next(iter(job.inputs.items()))
        feeds = {name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
        samples = runtime.time(feeds, plan)
        p50, p90, p99 = (float(value) / 1e6 for value in np.percentile(samples, (50, 90, 99)))
        return {
            "p50_ms": p50,
            "p90_ms": p90,
            "p99_ms": p99,
            "mean_ms": float(np.mean(samples)) / 1e6,
            "runs": len(samples),
            "warmup_runs": plan["warmup_runs"],
            "threads": job.options["threads"],
            "batch": shape[0],
            "clock": runtime.clock,
            "samples_ns": samples,
            "state_before": before,
            "state_after": read_state(),
        }


def _show_reference(found: dict) -> str:
    n = found["n"]
    text = f"{round(found['agreement'] * n)} of {n} images get the expected class"
    if found["top1"] is not None:
        text += f", {found['top1']:.1%} the true one"
    if found["max_abs_diff"] is not None:
        text += f"; logits differ by at most {found['max_abs_diff']:.3g} from those of {found['runtime']}"
    return text


def _show_timing(found: dict) -> str:
    times = ", ".join(f"{name} {found[f'{name}_ms']:.3f} ms" for name in ("p50", "p90", "p99"))
    return f"{times} of {found['runs']} runs"
