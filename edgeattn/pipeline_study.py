"""The study: what attention and INT8 do to accuracy, over networks, data sets and seeds; resumable, within a budget.

Finished cells are in ``study.json``; unfinished ones in ``runs/CELL``, from where they go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from edgeattn.errors import ArtifactError, EdgeAttnError, RecipeError
from edgeattn.measure import describe_environment
from edgeattn.pipeline_study_cell import CellJob, run_cell
from edgeattn.pipeline_study_plan import Cell, StudyPlan, compose, fingerprint, load_plan, order_cells, unpack
from edgeattn.pipeline_study_workers import open_workers
from edgeattn.pipeline_tune_store import user_cache
from edgeattn.progress import Progress, SilentProgress
from edgeattn.report_study import CellResult, StudyResults, load_results, save_results

__all__ = ["StudyOutcome", "estimate_seconds", "next_cell", "parse_budget", "run_study"]

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


@dataclasses.dataclass(frozen=True)
class StudyOutcome:
    """How far a study is.

    Attributes:
        plan: What it consists of.
        results: All finished cells, of earlier calls as well.
        new: How many this call finished.
        left: Cells that are not finished, by data set and network.
        seconds_left: What they take on one core, roughly.
        failed: Message by the name of the cell.
    """

    plan: StudyPlan
    results: StudyResults
    new: int
    left: dict[str, int]
    seconds_left: float
    failed: dict[str, str]


def parse_budget(text: str) -> float:
    """Return a time such as ``4h``, ``90m`` or ``1h30m`` in seconds.

    Raises:
        RecipeError: If it is of another form.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text.strip().lower())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip().lower():
        raise RecipeError(f"--budget {text!r} is not a time; expected for example 4h, 90m, 1h30m or 0s.")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def estimate_seconds(cell: Cell, results: StudyResults, machine: str, rate: float = 1.0) -> float:
    """Return how long a cell takes: at most what the most expensive one of its kind took on this machine.

    Args:
        cell: Which.
        results: What was measured.
        machine: Name of this processor; times of others say nothing.
        rate: Seconds here for each second of the plan, for a block that was not measured yet.
    """
    same = [c for c in results.cells if (c.data, c.network) == cell.block.key and c.machine == machine]
    own = [c.seconds for c in same if c.attention == cell.attention]
    return max(own or [c.seconds for c in same], default=60 * cell.block.minutes * rate)


def next_cell(
    pending: Sequence[Cell], plan: StudyPlan, results: StudyResults, machine: str, left: float | None
) -> Cell | None:
    """Return the first cell that ends in the time that is left, in seconds; None where none does."""
    if left is None:
        return pending[0]
    rate = _rate(results, plan, machine)
    return next((c for c in pending if estimate_seconds(c, results, machine, rate) <= left), None)


def run_study(
    plan_path: Path,
    out: Path,
    *,
    budget: float | None = None,
    only: Sequence[str] = (),
    workers: int = 1,
    keep_runs: bool = False,
    again: bool = False,
    progress: Progress | None = None,
    after_cell: Callable[[StudyPlan, StudyResults], object] | None = None,
    cache: Path | None = None,
) -> StudyOutcome:
    """Run the cells that have no result yet, as far as the budget goes.

    Args:
        plan_path: YAML of the grid.
        out: Holds ``study.json``, and ``runs`` while cells are at work.
        budget: Seconds of this call; 0 runs nothing, None everything. No cell begins that would not end in time.
        only: Names of data sets, networks and attentions, see `order_cells`.
        workers: Cells at a time, each a process with one thread.
        keep_runs: Leave the folders of finished cells.
        again: Drop results of another schedule, and compute them again.
        progress: Hears how far it is.
        after_cell: Called when a cell is finished and saved.
        cache: For unpacked and decoded images; default the user's cache folder.

    Raises:
        RecipeError: If the plan is not valid, or there are results of another schedule.
        DataError: If images are missing.
        ArtifactError: If results cannot be read or written, or another call works on them.
    """
    progress = progress or SilentProgress()
    plan = load_plan(plan_path)
    cells = order_cells(plan, budget=budget is not None, only=only)
    results = load_results(out)
    if budget == 0:
        return _outcome(plan, results, cells, 0, {})
    # What is wrong with the last network is said now, and not after days.
    for cell in {(*cell.block.key, cell.attention): cell for cell in cells}.values():
        try:
            compose(cell, plan_path, "ptq")
        except RecipeError as exc:
            block = cell.block
            raise RecipeError(
                f"{plan_path}, block {block.data} {block.network}, {cell.attention}: {exc}"
            ) from exc
    with _alone(out):
        study = _Study(plan_path, plan, out, results, progress, cache or user_cache() / "study", keep_runs)
        study.check(again)
        new = study.run(cells, budget, workers, after_cell)
    return _outcome(plan, results, cells, new, study.failed)


class _Study:
    def __init__(
        self,
        plan_path: Path,
        plan: StudyPlan,
        out: Path,
        results: StudyResults,
        progress: Progress,
        cache: Path,
        keep_runs: bool,
    ) -> None:
        self.plan_path, self.plan, self.out = plan_path, plan, out
        self.results, self.progress = results, progress
        self.cache, self.keep_runs = cache, keep_runs
        self.failed: dict[str, str] = {}
        self._hashes: dict[Path, str] = {}
        self._roots: dict[tuple[str, str], Path | None] = {}
        self._machine = _machine()

    def check(self, again: bool) -> None:
        """Refuse results that the plan would compute otherwise, or drop them."""
        blocks = {block.key: block for block in self.plan.blocks}
        other = []
        for known in self.results.cells:
            block = blocks.get((known.data, known.network))
            if block is not None:
                cell = Cell(block, known.attention, known.seed)
                if self._fingerprint(cell) != known.fingerprint:
                    other.append(known)
        if other and not again:
            first = other[0]
            raise RecipeError(
                f"{len(other)} of {len(self.results.cells)} results in {self.out} were computed with another schedule "
                f"or other weights than {self.plan_path} asks for, such as {first.data} {first.network} "
                f"{first.attention}, seed {first.seed}. Give --again to drop and compute them again, or another --out."
            )
        if other:
            dropped = {cell.key for cell in other}
            self.results.cells = [cell for cell in self.results.cells if cell.key not in dropped]
            save_results(self.results, self.out)

    def run(
        self,
        cells: Sequence[Cell],
        budget: float | None,
        workers: int,
        after_cell: Callable[[StudyPlan, StudyResults], object] | None,
    ) -> int:
        """Run what is missing; return how many cells were finished."""
        started = time.monotonic()
        pending = [cell for cell in cells if self.results.find(cell.key) is None]
        done, total = len(cells) - len(pending), len(cells)
        new = 0
        running: dict[Future[CellResult], Cell] = {}
        self.progress.update("cells", done, total)
        with open_workers(workers, self.progress) as executor:
            while True:
                while pending and len(running) < workers:
                    left = None if budget is None else budget - time.monotonic() + started
                    cell = next_cell(pending, self.plan, self.results, self._machine, left)
                    if cell is None:
                        break
                    pending.remove(cell)
                    running[executor.submit(run_cell, self._job(cell))] = cell
                if not running:
                    return new
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    cell = running.pop(future)
                    if self._take(cell, future):
                        new += 1
                        if after_cell is not None:
                            after_cell(self.plan, self.results)
                    done += 1
                    self.progress.update("cells", done, total)

    def _job(self, cell: Cell) -> CellJob:
        key = cell.block.key
        if key not in self._roots:
            self._roots[key] = unpack(cell.block, self.plan_path, self.cache, self.progress)
        return CellJob(
            cell,
            self.plan_path,
            self._roots[key],
            self._folder(cell),
            self.cache / "pixels",
            self._fingerprint(cell),
        )

    def _take(self, cell: Cell, future: Future[CellResult]) -> bool:
        """Save what a cell found; return whether it found something."""
        try:
            result = future.result()
        except BrokenProcessPool as exc:
            raise ArtifactError(
                "A process of the study was killed, perhaps for memory. Run the same command again, with fewer --workers."
            ) from exc
        except EdgeAttnError as exc:
            self.failed[cell.name] = " ".join(str(exc).split())
            self.progress.note(f"{cell.name} failed: {self.failed[cell.name]}")
            return False
        for known in self.results.cells:
            if known.data == result.data and known.data_sha256 != result.data_sha256:
                raise ArtifactError(
                    f"The images of {result.data} are not those of the results in {self.out} (SHA-256 "
                    f"{known.data_sha256}..., now {result.data_sha256}...). Restore them, or choose another --out."
                )
        self.results.put(result)
        save_results(self.results, self.out)
        if not self.keep_runs:
            shutil.rmtree(self._folder(cell), ignore_errors=True)
        shown = ", ".join(f"{mode} {100 * top1:.1f} %" for mode, top1 in result.top1.items())
        self.progress.note(f"{cell.name}: {shown}; {result.seconds:.0f} s")
        return True

    def _folder(self, cell: Cell) -> Path:
        return self.out / "runs" / cell.name

    def _fingerprint(self, cell: Cell) -> str:
        return fingerprint(cell, self.plan_path, self._hashes)


def _rate(results: StudyResults, plan: StudyPlan, machine: str) -> float:
    """Return how many seconds one second of the plan takes here: the median of the blocks that were measured."""
    minutes = {block.key: block.minutes for block in plan.blocks}
    rates = [
        cell.seconds / (60 * minutes[cell.data, cell.network])
        for cell in results.cells
        if cell.machine == machine and (cell.data, cell.network) in minutes
    ]
    return statistics.median(rates) if rates else 1.0


def _outcome(
    plan: StudyPlan, results: StudyResults, cells: Sequence[Cell], new: int, failed: dict[str, str]
) -> StudyOutcome:
    missing = [cell for cell in cells if results.find(cell.key) is None]
    machine = _machine()
    rate = _rate(results, plan, machine)
    return StudyOutcome(
        plan=plan,
        results=results,
        new=new,
        left=dict(Counter(" ".join(cell.block.key) for cell in missing)),
        seconds_left=sum(estimate_seconds(cell, results, machine, rate) for cell in missing),
        failed=failed,
    )


def _machine() -> str:
    cpu = describe_environment().get("cpu", {})
    return str(cpu.get("model") or "")[:200] if isinstance(cpu, dict) else ""


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep a second call away from the same results, where the system has locks that end with their process."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    runs = out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ArtifactError(
                f"Another study works in {out}. Wait for it, or choose another --out."
            ) from exc
        yield
