"""Train every mechanism that can be inserted on the digits, quantize it by PTQ and by QAT, and note the accuracy.

The schedule is short and the same for all: it shows which mechanisms learn and survive INT8, not who wins.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeattn.artifact import read_json, write_bytes, write_json
from edgeattn.attention import attentions
from edgeattn.errors import EdgeAttnError
from edgeattn.measure import describe_environment
from edgeattn.pipeline import run_recipe
from edgeattn.pipeline_catalogue import choose_names, load_rows, summarize
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


def digits_recipe(kind: str, mode: str, calibration: Path, epochs: int) -> Recipe:
    """Return the recipe of one training: MobileNetV2 0.35 on the handwritten digits at 32 x 32.

    Args:
        kind: The mechanism, or ``"none"``.
        mode: ``"ptq"`` or ``"qat"``.
        calibration: The manifest.
        epochs: Of the float network.
    """
    return Recipe.model_validate(
        {
            "name": f"catalogue_{kind}_{mode}",
            "model": {"arch": "mobilenet_v2", "width": 0.35, "dropout": 0.1},
            "attention": {"kind": kind},
            "data": {
                "kind": "digits",
                "preprocess": {"size": 32, "resize": None, "mean": [0.5] * 3, "std": [0.5] * 3},
                "augmentation": {"translate": 0.08, "rotate_degrees": 8},
            },
            "train": {"epochs": epochs, "batch_size": 32, "learning_rate": 4.0e-3, "weight_decay": 0.01},
            "calibration": str(calibration),
            "quant": {
                "mode": mode,
                "ptq": {"importance": False, "tuning_steps": 0},
                "qat": {
                    "epochs": 1,
                    "batch_size": 32,
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
    epochs: int = 3,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train what has no accuracy yet with this schedule; return the table with the accuracies.

    Args:
        out: The catalogue's folder; runs lie in ``runs/KIND`` while they last.
        table: As `edgeattn.pipeline_catalogue.make_catalogue` returned it.
        only: Names; empty means all that can be inserted.
        epochs: Of the float network.
        progress: Hears how far it is.
    """
    progress = progress or SilentProgress()
    manifest = write_bytes(out / "digits.yaml", _CALIBRATION)
    kinds = [name for name in choose_names(only) if attentions.get(name).contract == "map"]
    for done, kind in enumerate(kinds):
        progress.update("training", done, len(kinds))
        path = out / "rows" / f"{kind}.json"
        row = read_json(path)
        accuracy = row.get("accuracy")
        if accuracy and accuracy.get("epochs") == epochs and "error" not in accuracy:
            continue
        row["accuracy"] = _train(kind, manifest, out / "runs" / kind, epochs, progress)
        write_json(path, row)
        progress.note(f"{kind}: {_describe(row['accuracy'])}")
    progress.update("training", len(kinds), len(kinds))
    rows = load_rows(out)
    result = {**table, "rows": rows, "summary": summarize(rows)}
    write_json(out / "catalogue.json", result)
    return result


def _train(kind: str, manifest: Path, folder: Path, epochs: int, progress: Progress) -> dict[str, Any]:
    result: dict[str, Any] = {"epochs": epochs, "environment": describe_environment()}
    try:
        for mode in ("ptq", "qat"):
            # The second run takes the float network of the first.
            report = run_recipe(digits_recipe(kind, mode, manifest, epochs), folder, progress=progress)
            target = report.targets["ort-cpu"]
            result |= {
                "n": report.fp32.n,
                "top1_fp32": report.fp32.top1,
                f"top1_{mode}": target.top1,
                f"agreement_{mode}": target.agreement,
            }
            if target.status != "ok":
                result["error"] = target.error or target.reason
    except EdgeAttnError as exc:
        result["error"] = " ".join(str(exc).split())[:400]
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _describe(accuracy: dict[str, Any]) -> str:
    if "error" in accuracy:
        return str(accuracy["error"])
    shown = (f"{name} {100 * accuracy[f'top1_{name}']:.1f} %" for name in ("fp32", "ptq", "qat"))
    return f"top-1 {', '.join(shown)}"
