"""Time the exact edge forms and gate policies of a network on its target, and keep the fastest.

Latency does not depend on the numbers in a network, so candidates are built with random weights and
calibrated on one image of noise: a build takes seconds. Every candidate alternates with the best one so
far in one process, and takes its place only where the whole interval of the ratio lies below one: on a
noisy machine nothing changes without evidence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from edgeattn.attention import attentions
from edgeattn.attention.base import EdgeForm
from edgeattn.errors import RecipeError, TargetUnavailable
from edgeattn.export.artifacts import save_artifact
from edgeattn.export.float_onnx import export_float
from edgeattn.export.qdq import emit_qdq
from edgeattn.lint import choose_for_dla
from edgeattn.lower.preferences import preferred_forms
from edgeattn.measure.latency import compare_latency
from edgeattn.models import to_edge_form
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_float import build_network
from edgeattn.pipeline_tune_store import Candidate, Stage, Tuning, TuningStore, tuning_key
from edgeattn.progress import Progress
from edgeattn.quant.config import RANGES_ONLY, GatePolicy
from edgeattn.quant.gates import GateChoice, check_gate_paths, gate_paths
from edgeattn.quant.plan import Profile
from edgeattn.quant.ptq import make_plan
from edgeattn.recipe import Recipe, TuneSpec
from edgeattn.targets import Engine, Session, Target, TimingPlan, get_target

__all__ = ["can_tune", "compare_gates", "tune"]

DLA_TARGETS = ("tensorrt", "jetson-ssh")
"""Targets whose devices may have a deep learning accelerator."""

_CLASSES = 1000
ROUNDS = 16
_TIMING = TimingPlan(warmup_runs=10, min_runs=256, min_seconds=3.0)


def tune(
    recipe: Recipe,
    *,
    target: str | None = None,
    threads: int | None = None,
    again: bool = False,
    store: TuningStore | None = None,
    timing: TimingPlan | None = None,
    progress: Progress | None = None,
) -> Tuning:
    """Return the fastest edge forms and the order of gate policies for a recipe's network.

    Args:
        recipe: Network, attention, size, and what `recipe.tune` says; its defaults where that is null.
        target: Where it is to be fast; None means the recipe's first target.
        threads: Of one inference; None means ``recipe.measure.threads``.
        again: Measure even where the store has an answer.
        store: Where answers are kept.
        timing: Inferences of each candidate; default 256, or 3 s.
        progress: Hears how far it is.

    Raises:
        RecipeError: If the recipe's network has no attention.
        TargetUnavailable: If engines of the target can neither run here, nor be ranked by their kernels.
    """
    if recipe.attention.kind == "none":
        raise RecipeError("This recipe inserts no attention (attention.kind is none): nothing to tune.")
    runtime = get_target(target or recipe.targets[0])
    recipe = recipe if recipe.tune else recipe.model_copy(update={"tune": TuneSpec()})
    spec = recipe.tune or TuneSpec()
    if why_not := can_tune(runtime, spec):
        raise TargetUnavailable(why_not)
    threads = threads or recipe.measure.threads
    store = store or TuningStore()
    key = tuning_key(recipe, runtime, threads)
    kind = _kind_of_search(spec, runtime)
    if kind.ranked_by:
        key["ranked_by"] = kind.ranked_by
    known = None if again else store.load(key)
    if known is not None:
        return known
    timing = dataclasses.replace(timing or _TIMING, threads=threads)
    with tempfile.TemporaryDirectory(prefix="edgeattn-tune-") as folder:
        found = kind(recipe, runtime, timing, Path(folder), progress).run()
    tuning = Tuning(key=key, **found)
    store.save(tuning)
    return tuning


def compare_gates(
    recipe: Recipe,
    forms: Mapping[str, str],
    before: GateChoice,
    after: GateChoice,
    *,
    target: str | None = None,
    threads: int | None = None,
    timing: TimingPlan | None = None,
    progress: Progress | None = None,
) -> tuple[float, tuple[float, float]]:
    """Return the ratio of two choices' latencies, and its interval; of the counts where nothing runs.

    Args:
        recipe: As for `tune`.
        forms: Edge forms of both.
        before: What the ratio refer to.
        after: What is below 1 if it is faster.
        target: As for `tune`.
        threads: As for `tune`.
        timing: As for `tune`.
        progress: As for `tune`.
    """
    runtime, spec = get_target(target or recipe.targets[0]), recipe.tune or TuneSpec()
    timing = dataclasses.replace(timing or _TIMING, threads=threads or recipe.measure.threads)
    first, second = (_Choice(forms, item.policy, item.by_module) for item in (before, after))
    with tempfile.TemporaryDirectory(prefix="edgeattn-tune-") as folder:
        search = _kind_of_search(spec, runtime)(recipe, runtime, timing, Path(folder), progress)
        search._total = 2
        _, ratio, interval = search._measure(first, [second])[_id(second)]
    return ratio, interval


def can_tune(target: Target, spec: TuneSpec) -> str:
    """Return why forms cannot be ranked for a target here, or an empty string.

    Without a device, a build's list of kernels ranks them on targets that give one; for DLA nothing is built.

    Raises:
        RecipeError: If they are to be ranked for DLA on a target that has none.
    """
    if spec.rank_by == "dla":
        if target.name not in DLA_TARGETS:
            raise RecipeError(
                f"tune.rank_by is dla, but {target.name} has no DLA. Tune for {' or '.join(DLA_TARGETS)}."
            )
        return ""
    here = target.probe()
    if here.can_run or (here.can_build and target.profile == "s8"):
        return ""
    return f"{target.name} cannot run here, so nothing can be timed: {here.reason}"


_Figures = tuple[float | None, float, tuple[float, float]]
"""Median in ms where it was timed, ratio to the best before, and the ratio's interval."""


@dataclasses.dataclass(frozen=True)
class _Choice:
    forms: Mapping[str, str]
    policy: GatePolicy
    gates: Mapping[str, GatePolicy]


class _Search:
    ranked_by = ""

    def __init__(
        self, recipe: Recipe, target: Target, timing: TimingPlan, folder: Path, progress: Progress | None
    ) -> None:
        self.recipe = recipe
        self.spec = recipe.tune or TuneSpec()
        self.target = target
        self.timing = timing
        self.folder = folder
        self.progress = progress
        self.size = recipe.data.preprocess.size
        self.image = np.random.default_rng(0).standard_normal((1, 3, self.size, self.size)).astype(np.float32)
        # Gates that start as the identity have weights of zero, which a runtime might fold away.
        torch.manual_seed(0)
        classes = recipe.model.num_classes or _CLASSES
        self.model = build_network(recipe, classes, identity=False).eval()
        self.pinned = recipe.quant.gate_policies
        check_gate_paths(gate_paths(self.model), self.pinned)
        self.candidates: list[Candidate] = []
        self._start: Candidate | None = None
        self._built: dict[str, Engine] = {}
        self._done, self._total = 0, 1

    def run(self) -> dict[str, Any]:
        """Try forms, then policies, then forms by size, then policies by size; return the fields of a `Tuning`."""
        kind = self.recipe.attention.kind
        names = self._forms()
        sizes = self._gates_by_size() if self.spec.by_size and len(names) > 1 else []
        groups = self._free_gates() if self.spec.by_gate else []
        self._total = len(names) + len(self.spec.policies) + len(sizes) * (len(names) - 1)
        self._total += len(groups) * len(self.spec.policies)
        start = preferred_forms(self.target.name).get(kind, names[0])
        first = {kind: start if start in names else names[0]}
        best = _Choice(first, self.spec.policies[0], self.pinned)
        others = [dataclasses.replace(best, forms={kind: name}) for name in names if name != first[kind]]
        best = self._best("form", best, others)
        others = [dataclasses.replace(best, policy=policy) for policy in self.spec.policies[1:]]
        policies, best = self._policies(best, others)
        alternatives = [name for name in names if name != best.forms[kind]]
        for paths in sizes:
            tried = [
                dataclasses.replace(best, forms={**best.forms, **dict.fromkeys(paths, name)})
                for name in alternatives
            ]
            best = self._best("size", best, tried)
        for paths in groups:
            self._time_policies(best, paths)
        return {"forms": dict(best.forms), "policies": policies, "candidates": self._with_start()}

    def _with_start(self) -> list[Candidate]:
        if self._start is None:
            return self.candidates
        kept = not any(item.kept for item in self.candidates)
        return [self._start.model_copy(update={"kept": kept}), *self.candidates]

    def _forms(self) -> tuple[str, ...]:
        asked = self.recipe.attention.edge_form
        return (asked,) if asked else attentions.get(self.recipe.attention.kind).edge_forms

    def _gates_by_size(self) -> list[list[str]]:
        """Return the paths of attention modules, those on maps of one shape together, largest first."""
        edge = to_edge_form(self.model, self.size, self.size, materialize=True)
        shapes: dict[tuple[int, int, int], list[str]] = {}
        for path, module in edge.named_modules():
            if isinstance(module, EdgeForm):
                shape = module.channels, module.height, module.width
                shapes.setdefault(shape, []).append(path)
        return [shapes[shape] for shape in sorted(shapes, key=lambda s: -s[0] * s[1] * s[2])]

    def _free_gates(self) -> list[list[str]]:
        free = ([path for path in paths if path not in self.pinned] for paths in self._gates_by_size())
        return [paths for paths in free if paths]

    def _best(self, stage: Stage, best: _Choice, others: Sequence[_Choice]) -> _Choice:
        """Time `others` against `best` and return the fastest."""
        measured = self._compare(best, others)
        # The best so far is at 1 itself.
        faster = [choice for choice, (_, _, interval) in measured.items() if interval[1] < 1.0]
        winner = min(faster, key=lambda choice: measured[choice][1], default=_id(best))
        for choice in others:
            self._note(stage, choice, measured[_id(choice)], kept=_id(choice) == winner)
        return next(choice for choice in (best, *others) if _id(choice) == winner)

    def _policies(self, best: _Choice, others: Sequence[_Choice]) -> tuple[list[GatePolicy], _Choice]:
        measured = self._compare(best, others)
        ratios: dict[GatePolicy, float] = {best.policy: 1.0}
        for choice in others:
            _, ratio, interval = measured[_id(choice)]
            # A difference that may be none moves nothing: policies change numbers.
            ratios[choice.policy] = 1.0 if interval[0] <= 1.0 <= interval[1] else ratio
        order = sorted(ratios, key=ratios.__getitem__)
        for choice in others:
            self._note("policy", choice, measured[_id(choice)], kept=choice.policy == order[0])
        return order, dataclasses.replace(best, policy=order[0])

    def _time_policies(self, best: _Choice, paths: Sequence[str]) -> None:
        """Time every other policy of some gates; what becomes of it depends on what it costs in accuracy."""
        others = {
            policy: dataclasses.replace(best, gates={**best.gates, **dict.fromkeys(paths, policy)})
            for policy in self.spec.policies
            if policy != best.policy
        }
        measured = self._compare(best, list(others.values()))
        for policy, choice in others.items():
            item = self._candidate("gate", choice, measured[_id(choice)], kept=False)
            self.candidates.append(item.model_copy(update={"gates": dict.fromkeys(paths, policy)}))

    def _compare(self, best: _Choice, others: Sequence[_Choice]) -> dict[str, _Figures]:
        """Return (median in ms, ratio to `best`, interval) of `best` and of every other choice."""
        if not others:
            return {}
        measured = self._measure(best, others)
        if self._start is None:
            self._start = self._candidate("start", best, measured[_id(best)], kept=True)
        return measured

    def _measure(self, best: _Choice, others: Sequence[_Choice]) -> dict[str, _Figures]:
        engines = {_id(choice): self._build(choice) for choice in (best, *others)}
        with contextlib.ExitStack() as stack:
            sessions: dict[str, Session] = {
                name: stack.enter_context(self.target.open(engine, threads=self.timing.threads))
                for name, engine in engines.items()
            }
            result = compare_latency(
                sessions, {"input": self.image}, self.timing, rounds=ROUNDS, baseline=_id(best)
            )
        figures: dict[str, _Figures] = {_id(best): (result.latencies[_id(best)].p50_ms, 1.0, (1.0, 1.0))}
        for name, ratio in result.ratios.items():
            figures[name] = result.latencies[name].p50_ms, ratio.ratio, (ratio.interval[0], ratio.interval[1])
        return figures

    def _build(self, choice: _Choice) -> Engine:
        name = _id(choice)
        if name not in self._built:
            edge = to_edge_form(self.model, self.size, self.size, form=choice.forms, materialize=True)
            floating = export_float(edge, self.image.shape).model
            gates = GateChoice(choice.policy, choice.gates).regions(edge)
            plan = make_plan(floating, [self.image], RANGES_ONLY, gates)
            # Of random weights, values may be too small for float16; a trained network's are not.
            plan = plan.model_copy(update={"extents": dict.fromkeys(plan.extents, 1.0)})
            profile = cast("Profile", self.target.profile)
            file = self.folder / f"{len(self._built)}.onnx"
            artifact = save_artifact(emit_qdq(floating, plan, profile), file, profile, {})
            lowered = self.folder / "lowered"
            lowered.mkdir(exist_ok=True)
            self._built[name] = self.target.build(self.target.lower(artifact, lowered), self.folder)
        self._done += 1
        if self.progress:
            self.progress.update("tune", min(self._done, self._total), self._total)
        return self._built[name]

    def _note(self, stage: Stage, choice: _Choice, measured: _Figures, *, kept: bool) -> None:
        self.candidates.append(self._candidate(stage, choice, measured, kept=kept))

    def _candidate(self, stage: Stage, choice: _Choice, measured: _Figures, *, kept: bool) -> Candidate:
        latency_ms, ratio, interval = measured
        details = self._built[_id(choice)].details
        return Candidate(
            stage=stage,
            forms=dict(choice.forms),
            policy=choice.policy,
            latency_ms=latency_ms,
            ratio=ratio,
            ratio_interval=interval,
            kept=kept,
            kernels=details.get("kernels"),
            bytes_moved=details.get("coverage", {}).get("bytes_moved"),
        )


class _CountingSearch(_Search):
    """Ranks by kernels, then by bytes moved, as the build reports them: nothing runs."""

    ranked_by = "kernels, then bytes moved"

    def _measure(self, best: _Choice, others: Sequence[_Choice]) -> dict[str, _Figures]:
        counts = {_id(choice): self._count(choice) for choice in (best, *others)}
        base = counts[_id(best)]
        ratios = {name: count / base for name, count in counts.items()}
        return {name: (None, ratio, (ratio, ratio)) for name, ratio in ratios.items()}

    def _count(self, choice: _Choice) -> float:
        details = self._build(choice).details
        if not details.get("kernels"):
            raise TargetUnavailable(
                f"{self.target.name} cannot run here, and its build lists no kernels: nothing to rank by."
            )
        # Kernels decide; bytes only between equals, so they weigh less than one kernel together.
        return float(details["kernels"] + details["coverage"]["bytes_moved"] * 1e-12)


class _PlanningSearch(_Search):
    """Ranks by the parts that DLA's tables cut a network into: nothing is built, and policies do not matter."""

    ranked_by = "hand-overs between DLA and GPU"

    def run(self) -> dict[str, Any]:
        """Plan every form."""
        kind, names = self.recipe.attention.kind, self._forms()
        graphs: dict[str, Graph] = {}
        for index, name in enumerate(names):
            edge = to_edge_form(self.model, self.size, self.size, form={kind: name}, materialize=True)
            graphs[name] = Graph(export_float(edge, self.image.shape).model)
            if self.progress:
                self.progress.update("plan", index + 1, len(names))
        chosen, plans = choose_for_dla(graphs)
        start = preferred_forms(self.target.name).get(kind, names[0])
        base = len(plans[start if start in plans else names[0]].parts)
        for name, plan in plans.items():
            ratio = len(plan.parts) / base
            fallbacks: Counter[str] = Counter()
            for part in plan.parts:
                fallbacks.update(part.reasons)
            self.candidates.append(
                Candidate(
                    stage="form",
                    forms={kind: name},
                    policy=self.spec.policies[0],
                    ratio=ratio,
                    ratio_interval=(ratio, ratio),
                    kept=name == chosen,
                    loadables=plan.loadables,
                    gpu_parts=plan.gpu_parts,
                    fallbacks=dict(fallbacks),
                )
            )
        return {
            "forms": {kind: chosen},
            "policies": list(self.spec.policies),
            "candidates": self.candidates,
        }


def _id(choice: _Choice) -> str:
    return f"{sorted(choice.forms.items())} {choice.policy} {sorted(choice.gates.items())}"


def _kind_of_search(spec: TuneSpec, target: Target) -> type[_Search]:
    if spec.rank_by == "dla":
        return _PlanningSearch
    return _Search if target.probe().can_run else _CountingSearch
