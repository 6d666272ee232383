"""One cell of a study: train a float network, quantize it by PTQ and by QAT, and count what each gets right."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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

    threads, started = torch.get_num_threads(), time.monotonic()
    torch.set_num_threads(1)
    try:
        return _run(job, progress or SilentProgress(), started)
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


def _run(job: CellJob, progress: Progress, started: float) -> CellResult:
    from edgeattn.pipeline_train import prepare

    cell, earlier = job.cell, 0.0
    top1: dict[Mode, float] = {}
    for mode, profiles in _MODES.items():
        recipe = compose(cell, job.plan_path, mode, job.root)
        space = Workspace(job.folder, progress, job.cache)
        # The second time, the float network is the first's.
        prepared = prepare(recipe, space, tuple(profiles), progress)
        if mode == "ptq":
            earlier = sum(stage.seconds for stage in space.stages if stage.resumed)
            top1["fp32"] = _known(prepared.fp32_result.top1)
        for profile, name in profiles.items():
            top1[name] = _measure(prepared, profile, job.folder / _TARGET / name)
    environment = describe_environment()
    cpu = environment.get("cpu", {})
    return CellResult(
        data=cell.block.data,
        network=cell.block.network,
        attention=cell.attention,
        seed=cell.seed,
        fingerprint=job.fingerprint,
        data_sha256=prepared.data_fingerprint[:16],
        train_images=prepared.train_images,
        test_images=prepared.fp32_result.n,
        epochs=recipe.train.epochs if recipe.train else 0,
        qat_epochs=recipe.quant.qat.epochs,
        top1=top1,
        seconds=round(earlier + time.monotonic() - started, 1),
        machine=str(cpu.get("model") or "")[:200] if isinstance(cpu, dict) else "",
        version=edgeattn.__version__,
    )


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
