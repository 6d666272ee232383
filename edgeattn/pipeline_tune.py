"""Time the exact edge forms and gate policies of a network on its target, and keep the fastest.

Latency does not depend on the numbers in a network, so candidates are built with random weights and
calibrated on one image of noise: a build takes seconds. Every candidate alternates with the best one so
far in one process, and takes its place only where the whole interval of the ratio lies below one: on a
noisy machine nothing changes without evidence.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgeattn.errors import RecipeError, TargetUnavailable
from edgeattn.pipeline_tune_search import Choice, choice_id, kind_of_search
from edgeattn.pipeline_tune_store import Tuning, TuningStore, tuning_key
from edgeattn.progress import Progress
from edgeattn.quant.gates import GateChoice
from edgeattn.recipe import Recipe, TuneSpec
from edgeattn.targets import Target, TimingPlan, get_target

__all__ = ["can_tune", "compare_gates", "tune"]

DLA_TARGETS = ("tensorrt", "jetson-ssh")
"""Targets whose devices may have a deep learning accelerator."""

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
    kind = kind_of_search(spec, runtime)
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
        before: What the ratio refers to.
        after: What is below 1 if it is faster.
        target: As for `tune`.
        threads: As for `tune`.
        timing: As for `tune`.
        progress: As for `tune`.
    """
    runtime, spec = get_target(target or recipe.targets[0]), recipe.tune or TuneSpec()
    timing = dataclasses.replace(timing or _TIMING, threads=threads or recipe.measure.threads)
    first, second = (Choice(forms, item.policy, item.by_module) for item in (before, after))
    with tempfile.TemporaryDirectory(prefix="edgeattn-tune-") as folder:
        search = kind_of_search(spec, runtime)(recipe, runtime, timing, Path(folder), progress)
        _, ratio, interval = search.measure(first, [second])[choice_id(second)]
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
