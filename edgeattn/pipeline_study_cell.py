"""One cell of a study: train a float network, quantize it by PTQ and by QAT, and count what each gets right."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import edgeattn
from edgeattn.errors import DataError
from edgeattn.extras import require
from edgeattn.measure import compare_outputs, describe_environment, run_session
from edgeattn.pipeline_study_plan import Cell, compose
from edgeattn.pipeline_workspace import Workspace
from edgeattn.progress import Progress, SilentProgress
from edgeattn.report_study import CellResult, Mode
from edgeattn.targets import get_target

if TYPE_CHECKING:
    from edgeattn.pipeline_train import Prepared

__all__ = ["CellJob", "end_with_parent", "run_cell"]

_TARGET = "ort-cpu"
_MODES: dict[Literal["ptq", "qat"], dict[str, Mode]] = {
    "ptq": {"u8": "ptq_u8", "s8": "ptq_s8"},
    "qat": {"u8": "qat_u8", "s8": "qat_s8"},
}
_WATCH_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class CellJob:
    """What a process needs to run one cell.

    Attributes:
        cell: Which.
        plan_path: Of the plan.
        root: Of the images; None takes the recipe's.
        folder: Of the run; what is finished there is not repeated.
        cache: For decoded images, common to all cells.
        fingerprint: Of the request.
    """

    cell: Cell
    plan_path: Path
    root: Path | None
    folder: Path
    cache: Path
    fingerprint: str


def run_cell(job: CellJob, progress: Progress | None = None) -> CellResult:
    """Run one cell on one thread, or what is left of it.

    The stages are those of `edgeattn.run_recipe`; INT8 runs in ONNX Runtime, in both profiles.

    Raises:
        MissingExtraError: If torch, NNCF or ONNX Runtime is absent.
        EdgeAttnError: What any stage raises; finished stages stay.
    """
    for package in ("torch", "nncf", "onnxruntime"):
        require(package, purpose="a study")
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(job, progress or SilentProgress())
    finally:
        torch.set_num_threads(threads)


def end_with_parent(parent: int) -> None:
    """Let this process end soon after its parent: two must never work in one run's folder.

    Args:
        parent: The parent's process id.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(job: CellJob, progress: Progress) -> CellResult:
    cell = job.cell
    progress.note(f"{cell.name} begins")
    # Beside the stages of the two runs, which share a folder: what is measured of the first stays.
    space = Workspace(job.folder / "measured", progress)
    key = {"fingerprint": job.fingerprint, "version": edgeattn.__version__}
    found: dict[str, Any] = {"top1": {}, "earlier": 0.0}
    for mode in _MODES:
        measured = space.run(
            f"measure {mode}", key, [], functools.partial(_measure_mode, job, mode, progress)
        )
        found = {
            **measured,
            "top1": found["top1"] | measured["top1"],
            "earlier": found["earlier"] + measured["earlier"],
        }
    recipe = compose(cell, job.plan_path, "qat", job.root)
    cpu = describe_environment().get("cpu", {})
    return CellResult(
        data=cell.block.data,
        network=cell.block.network,
        attention=cell.attention,
        seed=cell.seed,
        fingerprint=job.fingerprint,
        data_sha256=found["data_sha256"],
        train_images=found["train_images"],
        test_images=found["test_images"],
        epochs=recipe.train.epochs if recipe.train else 0,
        qat_epochs=recipe.quant.qat.epochs,
        ptq_tuning_steps=recipe.quant.ptq.tuning_steps,
        top1=found["top1"],
        seconds=round(found["earlier"] + sum(stage.seconds for stage in space.stages), 1),
        machine=str(cpu.get("model") or "")[:200] if isinstance(cpu, dict) else "",
        version=edgeattn.__version__,
    )


def _measure_mode(job: CellJob, mode: Literal["ptq", "qat"], progress: Progress) -> dict[str, Any]:
    """Return what a report does not hold together: top-1 in float and in both profiles, and of which images."""
    from edgeattn.pipeline_train import prepare

    profiles = _MODES[mode]
    space = Workspace(job.folder, progress, job.cache)
    prepared = prepare(compose(job.cell, job.plan_path, mode, job.root), space, tuple(profiles), progress)
    top1 = {"fp32": _known(prepared.fp32_result.top1)}
    for profile, name in profiles.items():
        top1[name] = _measure(prepared, profile, job.folder / _TARGET / name)
    # QAT takes the float network of PTQ's run, whose time is counted there.
    earlier = sum(stage.seconds for stage in space.stages if stage.resumed) if mode == "ptq" else 0.0
    return {
        "top1": top1,
        "earlier": earlier,
        "data_sha256": prepared.data_fingerprint[:16],
        "train_images": prepared.train_images,
        "test_images": prepared.fp32_result.n,
    }


def _measure(prepared: Prepared, profile: str, workdir: Path) -> float:
    """Return the top-1 of an INT8 graph in ONNX Runtime."""
    target, fp32 = get_target(_TARGET), prepared.fp32
    (workdir / "lowered").mkdir(parents=True, exist_ok=True)
    engine = target.build(target.lower(prepared.qdq[profile], workdir / "lowered"), workdir)
    with target.open(engine, threads=1) as session:
        logits = run_session(session, prepared.images, fp32.inputs[0].name, fp32.outputs[0].name)
    return _known(compare_outputs(prepared.reference_logits, logits, prepared.labels).top1)


def _known(top1: float | None) -> float:
    if top1 is None:
        raise DataError("A study needs images with labels.")
    return top1
