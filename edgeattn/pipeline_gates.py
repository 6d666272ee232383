"""Choose a policy for each gate of a trained network: the fastest mix that keeps the recipe's bounds.

Times come from tuning, by map size; what a policy costs comes from simulating each gate alone. Errors of different
gates add up in power, so that the choice is a knapsack. What it predicts is then calibrated on one half of the
calibration images and measured on the other, and timed in alternation with the fastest policy for all that keeps the
bounds: the mix is taken only where it holds, and is faster beyond doubt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from edgeattn.data import CalibrationSet, load_calibration, load_dataset
from edgeattn.errors import DataError, RecipeError
from edgeattn.export.float_network import float_network
from edgeattn.export.float_onnx import FloatExport, export_float
from edgeattn.models import load_weights, to_edge_form
from edgeattn.pipeline_bounds import calibration_config
from edgeattn.pipeline_float import build_network
from edgeattn.pipeline_gate_search import GateSearch, GateTimer, Quantizable
from edgeattn.pipeline_tune import compare_gates
from edgeattn.pipeline_tune_store import GateRecord, Tuning, TuningStore
from edgeattn.progress import Progress
from edgeattn.quant.gates import GateChoice
from edgeattn.quant.plan import Profile
from edgeattn.recipe import Recipe
from edgeattn.targets import get_target

__all__ = ["choose_gates", "gate_choices", "gates_of_run", "quantizable", "weights_of_run"]


def quantizable(
    recipe: Recipe,
    edge: nn.Module,
    export: FloatExport,
    calibration: CalibrationSet,
    profiles: Sequence[Profile],
) -> Quantizable:
    """Return a recipe's trained network with what its calibration needs."""
    images, ptq = list(calibration.batches(1)), calibration_config(recipe)
    return Quantizable(
        network=float_network(edge, export, images, ptq),
        images=images,
        fingerprint=calibration.fingerprint,
        ptq=ptq,
        profiles=profiles,
    )


def gate_choices(
    recipe: Recipe, tuning: Tuning | None, network: Quantizable, progress: Progress
) -> tuple[list[GateChoice], GateRecord | None]:
    """Return the choices of policies to try, from the fastest on, and how a mix was searched where one was.

    Args:
        recipe: What is asked for.
        tuning: What is fastest; None where nothing was tuned.
        network: What is quantized.
        progress: Hears how far it is, and what came out.
    """
    quant = recipe.quant
    if tuning is None:
        return [GateChoice(quant.gate_policy, quant.gate_policies)], None
    if recipe.tune is None or not recipe.tune.by_gate:
        return [GateChoice(policy, quant.gate_policies) for policy in tuning.policies], None
    record = choose_gates(recipe, tuning, network, progress=progress)
    progress.note(f"tune: {record.why}")
    return [GateChoice(record.policy, record.gates)], record


def weights_of_run(recipe: Recipe, folder: Path) -> tuple[Path, bool]:
    """Return the float weights that `gates_of_run` takes, and whether they must fill the whole network.

    Raises:
        RecipeError: If the recipe does not ask for policies by gate.
        DataError: If the folder holds no trained network.
    """
    if recipe.tune is None or not recipe.tune.by_gate:
        raise RecipeError(
            "Policies by gate are not asked for: set tune.by_gate to true, or leave the run out."
        )
    if recipe.train is None and recipe.model.weights is not None:
        return recipe.model.weights, False
    weights = folder / "float.safetensors"
    if not weights.is_file():
        raise DataError(
            f"{folder} holds no float.safetensors: it is no run of this recipe that trained. Give the folder of one, "
            "as `edgeattn run RECIPE --out RUN` makes it."
        )
    return weights, True


def gates_of_run(
    recipe: Recipe,
    folder: Path,
    tuning: Tuning,
    *,
    again: bool = False,
    store: TuningStore | None = None,
    progress: Progress | None = None,
) -> GateRecord:
    """Return the policies of the trained network that a run left in its folder; see `choose_gates`.

    Args:
        recipe: Of the run.
        folder: Of the run, with its ``float.safetensors``; without one, ``model.weights`` are taken.
        tuning: As for `choose_gates`.
        again: As for `choose_gates`.
        store: As for `choose_gates`.
        progress: As for `choose_gates`.

    Raises:
        RecipeError: If the recipe does not ask for policies by gate.
        DataError: If the folder holds no trained network.
        ModelError: If the weights are not those of the recipe's network.
    """
    weights, strict = weights_of_run(recipe, folder)
    splits = load_dataset(recipe.data, Path())
    network = build_network(recipe, recipe.model.num_classes or splits.num_classes, identity=False).eval()
    load_weights(network, weights, strict=strict)
    size = recipe.data.preprocess.size
    shares = recipe.quant.mode == "qat"
    edge = to_edge_form(network.eval(), size, size, form=tuning.forms, materialize=not shares)
    calibration = load_calibration(recipe.calibration, splits, recipe.data.preprocess)
    names = dict.fromkeys(get_target(name).profile for name in recipe.targets)
    found = quantizable(
        recipe,
        edge,
        export_float(edge, (1, 3, size, size)),
        calibration,
        cast("Sequence[Profile]", tuple(names)),
    )
    return choose_gates(recipe, tuning, found, again=again, store=store, progress=progress)


def choose_gates(
    recipe: Recipe,
    tuning: Tuning,
    network: Quantizable,
    *,
    again: bool = False,
    store: TuningStore | None = None,
    timer: GateTimer | None = None,
    progress: Progress | None = None,
) -> GateRecord:
    """Return a policy for each gate, from the store where the same question was answered.

    Args:
        recipe: With `tune.by_gate`.
        tuning: Times of gates by map size, from `edgeattn.pipeline_tune.tune`.
        network: What is quantized.
        again: Measure even where the store has an answer.
        store: Where answers are kept.
        timer: Compares two choices; None times both on the tuning's target.
        progress: Hears how far it is.

    Raises:
        RecipeError: If ``quant.gate_policies`` names what is no attention module.
    """
    store = store or TuningStore()
    key = _key(recipe, tuning, network)
    known = None if again else store.load_gates(key)
    if known is not None:
        return known

    def compare(before: GateChoice, after: GateChoice) -> tuple[float, tuple[float, float]]:
        target, threads = tuning.key["target"], tuning.key["threads"]
        return compare_gates(
            recipe, tuning.forms, before, after, target=target, threads=threads, progress=progress
        )

    record = GateSearch(recipe, tuning, network, timer or compare, progress).run(key)
    store.save(record)
    return record


def _key(recipe: Recipe, tuning: Tuning, network: Quantizable) -> dict[str, Any]:
    graph = network.export.model.SerializeToString(deterministic=True)
    return {
        **tuning.key,
        "graph": hashlib.sha256(graph).hexdigest(),
        "calibration": network.fingerprint,
        "ptq": network.ptq.model_dump(mode="json"),
        "profiles": list(network.profiles),
        "bounds": recipe.accept.model_dump(
            mode="json", include={"agreement_min", "s8_agreement_min", "sqnr_db_min"}
        ),
        "order": list(tuning.policies),
        # Measured again, times differ.
        "times": [[*item.ratio_interval, item.ratio] for item in tuning.candidates if item.stage == "gate"],
    }
