"""Search the exact edge forms and gate policies of a network for the fastest.

What is compared runs in alternation, is counted, or is planned: one class for each.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from onnx import ModelProto
from torch import nn

from edgeattn.attention import attentions
from edgeattn.attention.base import EdgeForm
from edgeattn.errors import TargetUnavailable
from edgeattn.export.artifacts import save_artifact
from edgeattn.export.float_onnx import export_float
from edgeattn.export.qdq import emit_qdq
from edgeattn.lint import choose_for_dla
from edgeattn.lower.preferences import preferred_forms
from edgeattn.measure.latency import compare_latency
from edgeattn.models import to_edge_form
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_float import build_network
from edgeattn.pipeline_tune_store import Candidate, Stage
from edgeattn.progress import Progress
from edgeattn.quant.config import RANGES_ONLY, GatePolicy
from edgeattn.quant.gates import GateChoice, check_gate_paths, gate_paths
from edgeattn.quant.plan import Profile
from edgeattn.quant.ptq import make_plan
from edgeattn.recipe import Recipe, TuneSpec
from edgeattn.targets import Engine, Session, Target, TimingPlan

__all__ = ["Choice", "TimingSearch", "choice_id", "kind_of_search"]

_CLASSES = 1000
ROUNDS = 16


_Figures = tuple[float | None, float, tuple[float, float]]
"""Median in ms where it was timed, ratio to the best before, and the ratio's interval."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to build the network: edge forms by mechanism or path, policy of all gates, and those of some."""

    forms: Mapping[str, str]
    policy: GatePolicy
    gates: Mapping[str, GatePolicy]


class TimingSearch:
    """Ranks by time, everything that is compared in alternation in one process."""

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
        self._exports: dict[str, tuple[nn.Module, ModelProto]] = {}
        self._done, self._total = 0, 2

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
        best = Choice(first, self.spec.policies[0], self.pinned)
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

    def _best(self, stage: Stage, best: Choice, others: Sequence[Choice]) -> Choice:
        """Time `others` against `best` and return the fastest."""
        measured = self._compare(best, others)
        # The best so far is at 1 itself.
        faster = [choice for choice, (_, _, interval) in measured.items() if interval[1] < 1.0]
        winner = min(faster, key=lambda choice: measured[choice][1], default=choice_id(best))
        for choice in others:
            self._note(stage, choice, measured[choice_id(choice)], kept=choice_id(choice) == winner)
        return next(choice for choice in (best, *others) if choice_id(choice) == winner)

    def _policies(self, best: Choice, others: Sequence[Choice]) -> tuple[list[GatePolicy], Choice]:
        measured = self._compare(best, others)
        ratios: dict[GatePolicy, float] = {best.policy: 1.0}
        for choice in others:
            _, ratio, interval = measured[choice_id(choice)]
            # A difference that may be none moves nothing: policies change numbers.
            ratios[choice.policy] = 1.0 if interval[0] <= 1.0 <= interval[1] else ratio
        order = sorted(ratios, key=ratios.__getitem__)
        for choice in others:
            self._note("policy", choice, measured[choice_id(choice)], kept=choice.policy == order[0])
        return order, dataclasses.replace(best, policy=order[0])

    def _time_policies(self, best: Choice, paths: Sequence[str]) -> None:
        """Time every other policy of some gates; what becomes of it depends on what it costs in accuracy."""
        others = {
            policy: dataclasses.replace(best, gates={**best.gates, **dict.fromkeys(paths, policy)})
            for policy in self.spec.policies
            if policy != best.policy
        }
        measured = self._compare(best, list(others.values()))
        for policy, choice in others.items():
            item = self._candidate("gate", choice, measured[choice_id(choice)], kept=False)
            self.candidates.append(item.model_copy(update={"gates": dict.fromkeys(paths, policy)}))

    def _compare(self, best: Choice, others: Sequence[Choice]) -> dict[str, _Figures]:
        """Return (median in ms, ratio to `best`, interval) of `best` and of every other choice."""
        if not others:
            return {}
        measured = self.measure(best, others)
        if self._start is None:
            self._start = self._candidate("start", best, measured[choice_id(best)], kept=True)
        return measured

    def measure(self, best: Choice, others: Sequence[Choice]) -> dict[str, _Figures]:
        """Return (median in ms, ratio to `best`, interval) of `best` and the others, by `choice_id`."""
        engines = {choice_id(choice): self._build(choice) for choice in (best, *others)}
        with contextlib.ExitStack() as stack:
            sessions: dict[str, Session] = {
                name: stack.enter_context(self.target.open(engine, threads=self.timing.threads))
                for name, engine in engines.items()
            }
            result = compare_latency(
                sessions, {"input": self.image}, self.timing, rounds=ROUNDS, baseline=choice_id(best)
            )
        figures: dict[str, _Figures] = {
            choice_id(best): (result.latencies[choice_id(best)].p50_ms, 1.0, (1.0, 1.0))
        }
        for name, ratio in result.ratios.items():
            figures[name] = result.latencies[name].p50_ms, ratio.ratio, (ratio.interval[0], ratio.interval[1])
        return figures

    def _build(self, choice: Choice) -> Engine:
        name = choice_id(choice)
        if name not in self._built:
            edge, floating = self._export(choice.forms)
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

    def _export(self, forms: Mapping[str, str]) -> tuple[nn.Module, ModelProto]:
        """Return the edge form and its float graph, which all policies share."""
        name = f"{sorted(forms.items())}"
        if name not in self._exports:
            edge = to_edge_form(self.model, self.size, self.size, form=forms, materialize=True)
            self._exports[name] = edge, export_float(edge, self.image.shape).model
        return self._exports[name]

    def _note(self, stage: Stage, choice: Choice, measured: _Figures, *, kept: bool) -> None:
        self.candidates.append(self._candidate(stage, choice, measured, kept=kept))

    def _candidate(self, stage: Stage, choice: Choice, measured: _Figures, *, kept: bool) -> Candidate:
        latency_ms, ratio, interval = measured
        details = self._built[choice_id(choice)].details
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


class _CountingSearch(TimingSearch):
    """Ranks by kernels, then by bytes moved, as the build reports them: nothing runs."""

    ranked_by = "kernels, then bytes moved"

    def measure(self, best: Choice, others: Sequence[Choice]) -> dict[str, _Figures]:
        """Return (None, ratio of counts to that of `best`, twice the same) by `choice_id`."""
        counts = {choice_id(choice): self._count(choice) for choice in (best, *others)}
        base = counts[choice_id(best)]
        ratios = {name: count / base for name, count in counts.items()}
        return {name: (None, ratio, (ratio, ratio)) for name, ratio in ratios.items()}

    def _count(self, choice: Choice) -> float:
        details = self._build(choice).details
        if not details.get("kernels"):
            raise TargetUnavailable(
                f"{self.target.name} cannot run here, and its build lists no kernels: nothing to rank by."
            )
        # Kernels decide; bytes only between equals, so they weigh less than one kernel together.
        return float(details["kernels"] + details["coverage"]["bytes_moved"] * 1e-12)


class _PlanningSearch(TimingSearch):
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


def choice_id(choice: Choice) -> str:
    """Return what tells choices apart: the key of what is measured of them."""
    return f"{sorted(choice.forms.items())} {choice.policy} {sorted(choice.gates.items())}"


def kind_of_search(spec: TuneSpec, target: Target) -> type[TimingSearch]:
    """Return how a target's choices are ranked here: by time, by kernels where nothing runs, or by plans for DLA."""
    if spec.rank_by == "dla":
        return _PlanningSearch
    return TimingSearch if target.probe().can_run else _CountingSearch
