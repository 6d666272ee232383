"""The search for the fastest policies by gate: predicted, calibrated, measured, timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgeattn.export.fake_quant import fixed_constants
from edgeattn.export.float_network import FloatNetwork
from edgeattn.export.float_onnx import FloatExport
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_bounds import CalibrationBounds, agreement_of, noise_of, sqnr_of
from edgeattn.pipeline_tune_store import GateRecord, GateRow, GateTrial, PolicyCost, Tuning
from edgeattn.progress import Progress
from edgeattn.quant.config import GatePolicy, PtqConfig
from edgeattn.quant.gate_choice import GateOption, choose_options
from edgeattn.quant.gates import GateChoice, check_gate_paths, gate_paths
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import LadderStep, Profile
from edgeattn.quant.ptq import make_plan
from edgeattn.quant.sensitivity import measure_gate_noise
from edgeattn.quant.simulation import PlanMeter
from edgeattn.recipe import Recipe

__all__ = ["GateSearch", "GateTimer", "Quantizable"]

COST_IMAGES = 16
TRIES = 3
_MILLION = 1_000_000

GateTimer = Callable[[GateChoice, GateChoice], tuple[float, tuple[float, float]]]
"""Takes two choices, returns the ratio of the second's latency to the first's with its interval."""


@dataclasses.dataclass(frozen=True)
class Quantizable:
    """A trained network with what its calibration needs.

    Attributes:
        network: Its edge form, as it is quantized.
        images: Calibration images, (1, C, H, W) each.
        fingerprint: Of the calibration images.
        ptq: How it is calibrated.
        profiles: Which spellings must keep the bounds.
    """

    network: FloatNetwork
    images: Sequence[NDArray[np.float32]]
    fingerprint: str
    ptq: PtqConfig
    profiles: Sequence[Profile]

    @property
    def edge(self) -> nn.Module:
        """The module that is quantized."""
        return self.network.module

    @property
    def export(self) -> FloatExport:
        """Its float graph."""
        return self.network.export


class GateSearch:
    """Searches one trained network.

    Args:
        recipe: What is asked for: bounds, and policies that it gives to gates.
        tuning: Times of gates by map size.
        network: What is quantized.
        timer: Compares two choices in time.
        progress: Hears how far it is.
    """

    def __init__(
        self,
        recipe: Recipe,
        tuning: Tuning,
        network: Quantizable,
        timer: GateTimer,
        progress: Progress | None,
    ) -> None:
        self.tuning = tuning
        self.network = network
        self.timer = timer
        self.progress = progress
        self.pinned = recipe.quant.gate_policies
        self.paths = gate_paths(network.edge)
        check_gate_paths(self.paths, self.pinned)
        self.bounds = CalibrationBounds.of(recipe.accept, network.profiles)
        self.learned, self.held = list(network.images[::2]), list(network.images[1::2])
        self.graph = Graph(network.export.model)
        self.fixed = fixed_constants(network.edge, network.export)
        self.trials: list[tuple[GateChoice, LadderStep]] = []
        self.costs: dict[str, list[PolicyCost]] = {}

    def run(self, key: dict[str, Any]) -> GateRecord:
        """Search, and return what was found under `key`."""
        whole = self._best_for_all()
        self.costs = self._costs()
        chosen, why, timed = self._mixed(whole)
        rows = [
            GateRow(module=path, policy=chosen.of(path), pinned=path in self.pinned, options=self.costs[path])
            for path in self.paths
        ]
        return GateRecord(
            key=key,
            policy=chosen.policy,
            gates=dict(chosen.by_module),
            rows=rows,
            trials=[self._record(choice, step) for choice, step in self.trials],
            ratio=timed[0] if timed else None,
            ratio_interval=timed[1] if timed else None,
            why=why,
        )

    def _best_for_all(self) -> GateChoice:
        """Return the fastest policy for all gates that keeps the bounds, or the nearest where none does."""
        slacks: dict[GatePolicy, float] = {}
        for policy in self.tuning.policies:
            slacks[policy] = self.bounds.slack(self._measured(GateChoice(policy, self.pinned)))
            if slacks[policy] >= 0:
                break
        return GateChoice(max(slacks, key=lambda policy: slacks[policy]), self.pinned)

    def _mixed(self, whole: GateChoice) -> tuple[GateChoice, str, tuple[float, tuple[float, float]] | None]:
        """Return the choice, why, and the comparison in time."""
        holds = self._keeps(whole)
        reason = f"{whole.policy} for all"
        anchor, seen = GateChoice(self.tuning.policies[0], self.pinned), [whole]
        for _ in range(TRIES):
            mix = self._predicted(anchor)
            if mix is None:
                return whole, f"{reason}: no mix is predicted to keep the bounds", None
            if any(self._same(mix, other) for other in seen) or (
                holds and self._time(mix) >= self._time(whole)
            ):
                return whole, f"{reason}: no mix is predicted to be faster and to keep the bounds", None
            seen.append(mix)
            if self._keeps(mix):
                timed = self.timer(whole, mix)
                if timed[1][1] < 1:
                    return mix, f"the mix keeps the bounds and is faster than {reason}", timed
                if not holds:
                    return mix, f"the mix keeps the bounds, which {reason} misses", timed
                return whole, f"{reason}: the mix was not faster beyond doubt", timed
            anchor = mix
        return whole, f"{reason}: the mixes that were calibrated miss the bounds", None

    def _predicted(self, anchor: GateChoice) -> GateChoice | None:
        """Return the fastest choice that is predicted to keep the bounds, from a measured one; None if none is."""
        step = self._measured(anchor)
        left: dict[Profile, float] = {}
        for profile in self.network.profiles:
            gates = sum(self._cost(path, anchor.of(path)).noise[profile] for path in self.paths)
            others = max(noise_of(step, profile) - gates, 0.0)
            left[profile] = self.bounds.noise_allowed(step, profile, len(self.held)) - others
        if min(left.values()) <= 0:
            return None
        options = [
            [
                # Of two profiles the one that takes more of its budget: sums of these are never too small.
                GateOption(item.policy, _counted(item), max(item.noise[p] / left[p] for p in left))
                for item in self.costs[path]
                if item.policy in ([self.pinned[path]] if path in self.pinned else self.tuning.policies)
            ]
            for path in self.paths
        ]
        found = choose_options(options)
        if found is None:
            return None
        base = self.tuning.policies[0]
        own = {path: item.policy for path, item in zip(self.paths, found, strict=True) if item.policy != base}
        return GateChoice(base, {**own, **self.pinned})

    def _costs(self) -> dict[str, list[PolicyCost]]:
        """Return what every policy costs at every gate, the default policy first."""
        unused = dict.fromkeys(
            ("nncf", "equalization", "importance", "padded_grids", "exact", "rounding"), False
        )
        cheap = {**unused, "tuning_steps": 0, "headroom": "none"}
        config = self.network.ptq.model_copy(update=cheap)
        every = max(len(self.learned) // COST_IMAGES, 1)
        images = self.learned[::every][:COST_IMAGES]
        policies = list(dict.fromkeys([*self.tuning.policies, *self.pinned.values()]))
        noise: dict[tuple[GatePolicy, Profile], dict[str, float]] = {}
        for done, policy in enumerate(policies):
            gates = GateChoice(policy).regions(self.network.edge)
            place = place_quantizers(self.network.export.model, gates)
            plan = make_plan(self.network.export.model, images, config, gates)
            for profile in self.network.profiles:
                noise[policy, profile] = measure_gate_noise(self.graph, plan, profile, place, images, gates)
            if self.progress:
                self.progress.update("gates", done + 1, len(policies))
        times = {
            (path, policy): (item.ratio, item.ratio_interval, len(item.gates))
            for item in self.tuning.candidates
            if item.stage == "gate"
            for path, policy in item.gates.items()
        }
        result: dict[str, list[PolicyCost]] = {}
        for path in self.paths:
            prefix = path.replace(".", "/")
            result[path] = []
            for policy in policies:
                ratio, interval, share = times.get((path, policy), (1.0, (1.0, 1.0), 1))
                low, high = ((bound - 1) / share for bound in interval)
                result[path].append(
                    PolicyCost(
                        policy=policy,
                        time=(ratio - 1) / share,
                        time_interval=(low, high),
                        noise={profile: noise[policy, profile][prefix] for profile in self.network.profiles},
                    )
                )
        return result

    # ------------------------------------------------------------------------------ helpers

    def _measured(self, choice: GateChoice) -> LadderStep:
        """Return what a choice reaches on one half of the images, calibrated on the other."""
        for known, step in self.trials:
            if self._same(known, choice):
                return step
        model, regions = self.network.export.model, choice.regions(self.network.edge)
        plan = make_plan(model, self.learned, self.network.ptq, regions, self._counter(), self.fixed)
        meter = PlanMeter(self.graph, place_quantizers(model, regions), self.held)
        self.trials.append((choice, meter.step("gates", plan, 0.0)))
        return self.trials[-1][1]

    def _keeps(self, choice: GateChoice) -> bool:
        return self.bounds.slack(self._measured(choice)) >= 0

    def _same(self, first: GateChoice, second: GateChoice) -> bool:
        return all(first.of(path) == second.of(path) for path in self.paths)

    def _cost(self, path: str, policy: GatePolicy) -> PolicyCost:
        return next(item for item in self.costs[path] if item.policy == policy)

    def _time(self, choice: GateChoice) -> int:
        return sum(_counted(self._cost(path, choice.of(path))) for path in self.paths)

    def _record(self, choice: GateChoice, step: LadderStep) -> GateTrial:
        profiles = self.network.profiles
        return GateTrial(
            policy=choice.policy,
            gates=dict(choice.by_module),
            agreement={profile: agreement_of(step, profile) for profile in profiles},
            sqnr_db={profile: sqnr_of(step, profile) for profile in profiles},
            keeps=self.bounds.slack(step) >= 0,
        )

    def _counter(self) -> Callable[[int, int], None]:
        number = len(self.trials) + 1

        def count(done: int, total: int) -> None:
            if self.progress:
                self.progress.update(f"gates: choice {number}", done, total)

        return count


def _counted(cost: PolicyCost) -> int:
    """Return a change of time in millionths; none where its interval holds none."""
    low, high = cost.time_interval
    return 0 if low <= 0 <= high else round(cost.time * _MILLION)
