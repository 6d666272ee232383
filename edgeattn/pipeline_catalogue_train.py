"""Train every mechanism that can be inserted on the digits, quantize it by PTQ and by QAT, and note the accuracy.

The schedule is short and the same for all: it shows which mechanisms learn and survive INT8, not who wins.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeattn.artifact import write_bytes, write_json
from edgeattn.attention import attentions
from edgeattn.errors import EdgeAttnError
from edgeattn.measure import describe_environment
from edgeattn.pipeline import run_recipe
from edgeattn.pipeline_catalogue import choose_names, load_rows, read_accuracy, save_table
from edgeattn.progress import Progress, SilentProgress
from edgeattn.recipe import Recipe

__all__ = ["digits_recipe", "train_catalogue"]

_CALIBRATION = b"""name: digits
data: {kind: digits, validation_share: 0.2, split_seed: 0}
split: train
count: 128
seed: 0
sha256: 9cb8409f3767bed532921b2a6cf35a79791dc814be8ba5332100339b5421a708
"""
"""The manifest calibration/digits.yaml, for a place without the repository."""


BACKBONE_EPOCHS = 24
BARE = "none"


def digits_recipe(
    kind: str,
    mode: str,
    calibration: Path,
    epochs: int,
    backbone: Path | None = None,
    gate_policy: str = "int8",
) -> Recipe:
    """Return the recipe of one training: MobileNetV2 0.35 on the handwritten digits at 32 x 32.

    Args:
        kind: The mechanism, or ``"none"``.
        mode: ``"ptq"`` or ``"qat"``.
        calibration: The manifest.
        epochs: Of the float network.
        backbone: Weights of the trained network without attention, to begin with; None: random ones.
        gate_policy: What of the gates is INT8.
    """
    starts_as_identity = kind != BARE and attentions.get(kind).contract == "map"
    return Recipe.model_validate(
        {
            "name": f"catalogue_{kind}_{mode}",
            "model": {"arch": "mobilenet_v2", "width": 0.35, "dropout": 0.1, "weights": backbone},
            "attention": {"kind": kind, "identity_start": starts_as_identity and backbone is not None},
            "data": {
                "kind": "digits",
                "preprocess": {"size": 32, "resize": None, "mean": [0.5] * 3, "std": [0.5] * 3},
                "augmentation": {"translate": 0.08, "rotate_degrees": 8},
            },
            "train": {
                "epochs": epochs,
                "batch_size": 32,
                # What is trained already moves little; a mechanism's own parameters learn faster.
                "learning_rate": 4.0e-3 if backbone is None else 8.0e-4,
                "head_lr_multiplier": 4.0 if starts_as_identity and backbone is not None else 1.0,
                "weight_decay": 0.01,
            },
            "calibration": str(calibration),
            "quant": {
                "mode": mode,
                "gate_policy": gate_policy,
                # Without the searches that take minutes for each network: what plain calibration gives.
                "ptq": {"nncf": False, "importance": False, "tuning_steps": 0},
                "qat": {
                    "epochs": 1,
                    "batch_size": 64,
                    "learning_rate": 2.0e-4,
                    "warmup_epochs": 0,
                    "freeze_batch_norm": True,
                    "distillation_weight": 0.5,
                },
            },
            "targets": ["ort-cpu"],
            "measure": {"quick": True},
        }
    )


def train_catalogue(
    out: Path,
    table: dict[str, Any],
    *,
    only: Sequence[str] = (),
    epochs: int = 4,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train what has no accuracy yet with this schedule; return the table with the accuracies.

    One network without attention is trained for all. Each mechanism starts from its weights, as the identity
    where it keeps its input's shape, and is trained for some epochs; so is the bare network, to compare with.

    Args:
        out: The catalogue's folder; runs lie in ``runs/KIND`` while they last.
        table: As `edgeattn.pipeline_catalogue.make_catalogue` returned it.
        only: Names; empty means all that can be inserted or take a convolution's place.
        epochs: Of each float network, after the common ones.
        progress: Hears how far it is.

    Raises:
        EdgeAttnError: If the common network cannot be trained; what goes wrong later becomes part of the row.
    """
    progress = progress or SilentProgress()
    out.mkdir(parents=True, exist_ok=True)
    manifest = write_bytes(out / "digits.yaml", _CALIBRATION)
    kinds = [BARE, *(name for name in choose_names(only) if attentions.get(name).contract in _TRAINED)]
    # What brings a module above the bound in INT8 is what its network is quantized with.
    policies = {row["name"]: row.get("gate_policy") or "int8" for row in load_rows(out)}
    identities = {
        kind: {"schedule": _schedule(kind, manifest, epochs), "gate_policy": policies.get(kind, "int8")}
        for kind in kinds
    }
    missing = [kind for kind in kinds if not _is_whole(read_accuracy(out, kind), identities[kind])]
    for done, kind in enumerate(missing):
        progress.update("training", done, len(missing))
        backbone = _train_backbone(out, manifest, progress)
        policy = identities[kind]["gate_policy"]
        accuracy = _train(kind, manifest, backbone, out / "runs" / kind, epochs, policy, progress)
        write_json(out / "accuracy" / f"{kind}.json", accuracy | identities[kind])
        progress.note(f"{kind}: {_describe(accuracy)}")
    progress.update("training", len(missing), len(missing))
    return save_table(out, table)


_TRAINED = ("map", "convolution")


def _schedule(kind: str, manifest: Path, epochs: int) -> str:
    """Return what an accuracy depends on besides the mechanism's code."""
    recipes = (
        digits_recipe(BARE, "ptq", manifest, BACKBONE_EPOCHS),
        digits_recipe(kind, "qat", manifest, epochs, manifest),
    )
    chosen = [r.model_dump(mode="json", include={"data", "train", "quant"}) for r in recipes]
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def _is_whole(accuracy: Mapping[str, Any] | None, identity: Mapping[str, str]) -> bool:
    return (
        accuracy is not None
        and "error" not in accuracy
        and all(accuracy.get(key) == value for key, value in identity.items())
    )


def _train_backbone(out: Path, manifest: Path, progress: Progress) -> Path:
    """Return the weights of the network without attention, trained where they are not there yet."""
    from edgeattn.data import load_dataset
    from edgeattn.pipeline_float import FloatStage
    from edgeattn.pipeline_workspace import Workspace

    folder = out / "runs" / "backbone"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = digits_recipe(BARE, "ptq", manifest, BACKBONE_EPOCHS)
    # A finished stage is taken from the folder.
    FloatStage(recipe, Workspace(folder, progress), progress).model(load_dataset(recipe.data, Path()))
    return folder / "float.safetensors"


def _train(
    kind: str, manifest: Path, backbone: Path, folder: Path, epochs: int, policy: str, progress: Progress
) -> dict[str, Any]:
    result: dict[str, Any] = {"epochs": epochs, "environment": describe_environment()}
    try:
        for mode in ("ptq", "qat"):
            # The second run takes the float network of the first.
            recipe = digits_recipe(kind, mode, manifest, epochs, backbone, policy)
            report = run_recipe(recipe, folder, progress=progress)
            target = report.targets["ort-cpu"]
            result |= {
                "n": report.fp32.n,
                "top1_fp32": report.fp32.top1,
                f"top1_{mode}": target.top1,
                f"agreement_{mode}": target.agreement,
            }
            if target.status != "ok":
                result["error"] = target.error or target.reason
    except (EdgeAttnError, RuntimeError, ValueError, KeyError) as exc:
        result["error"] = " ".join(str(exc).split())[:400]
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _describe(accuracy: dict[str, Any]) -> str:
    if "error" in accuracy:
        return str(accuracy["error"])
    shown = (f"{name} {100 * accuracy[f'top1_{name}']:.1f} %" for name in ("fp32", "ptq", "qat"))
    return f"top-1 {', '.join(shown)}"
