"""What tuning found, kept for the next build on the same machine with the same runtime."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import edgeattn
from edgeattn.artifact import read_json, write_json
from edgeattn.errors import ArtifactError
from edgeattn.measure.environment import describe_environment
from edgeattn.quant.config import GatePolicy
from edgeattn.recipe import Recipe
from edgeattn.targets import Target, device_of

__all__ = ["Candidate", "Stage", "Tuning", "TuningStore", "tuning_key", "user_cache"]

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Stage = Literal["start", "form", "policy", "size"]


class Candidate(BaseModel):
    """One way to build the network, timed against the default in alternation.

    Attributes:
        stage: ``"start"``, which the first ones are compared with, ``"form"``, ``"policy"`` or ``"size"``.
        forms: Edge form by mechanism or module path.
        policy: Gate policy.
        latency_ms: Median of the whole network; None where nothing ran, and something was counted.
        ratio: Median over rounds of its latency over the latency of the best one before it; or of the counts.
        ratio_interval: 95 % bootstrap interval of `ratio`.
        kept: Whether it became the best one; of the start, whether nothing else did.
        kernels: In the engine, on targets that tell.
        bytes_moved: By its kernels, likewise.
        loadables: That DLA would run, where ranked by hand-overs; a core holds 16.
        gpu_parts: That would fall back to the GPU, likewise.
        fallbacks: Why, each with the number of its operations, likewise.
    """

    model_config = _STRICT

    stage: Stage
    forms: dict[str, str]
    policy: GatePolicy
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    ratio: Annotated[float, Field(gt=0)]
    ratio_interval: tuple[float, float]
    kept: bool
    kernels: int | None = None
    bytes_moved: int | None = None
    loadables: int | None = None
    gpu_parts: int | None = None
    fallbacks: dict[str, int] = Field(default_factory=dict)


class Tuning(BaseModel):
    """The outcome of tuning one network for one target.

    Attributes:
        key: What it holds for: network, attention, target, runtime, threads, machine, device.
        forms: Edge form by mechanism, and by module path where one differs.
        policies: Gate policies from the fastest on, measured with `forms`' mechanism-wide form.
        candidates: Everything that was timed, in order; empty where there was no choice.
    """

    model_config = _STRICT

    version: Literal[1] = 1
    key: dict[str, Any]
    forms: dict[str, str]
    policies: list[GatePolicy]
    candidates: list[Candidate]


class TuningStore:
    """Tunings as JSON files in a folder, one for each key.

    Args:
        folder: Default ``$EDGEATTN_CACHE/tuning``, or else the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else user_cache() / "tuning"

    def path(self, key: dict[str, Any]) -> Path:
        """Return where the tuning for `key` is kept."""
        text = json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def load(self, key: dict[str, Any]) -> Tuning | None:
        """Return the tuning for `key`; None if there is none.

        Raises:
            ArtifactError: If the file is not a tuning, or another key's.
        """
        path = self.path(key)
        if not path.exists():
            return None
        try:
            tuning = Tuning.model_validate(read_json(path))
        except ValidationError as exc:
            raise ArtifactError(f"{path} is not a record of tuning. Delete it to tune again.") from exc
        if tuning.key != key:
            raise ArtifactError(f"{path} was made for another network. Delete it to tune again.")
        return tuning

    def save(self, tuning: Tuning) -> Path:
        """Keep a tuning, whole or not at all; return its file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return write_json(self.path(tuning.key), tuning.model_dump(mode="json"))


def tuning_key(recipe: Recipe, target: Target, threads: int) -> dict[str, Any]:
    """Return everything that the fastest choice may depend on."""
    model, attention = recipe.model, recipe.attention
    cpu = describe_environment()["cpu"]
    spec = recipe.tune
    return {
        "edgeattn": edgeattn.__version__,
        "target": target.name,
        "runtime": target.probe().version,
        "threads": threads,
        # Planning by tables needs no device, and holds for all.
        "device": "" if spec is not None and spec.rank_by == "dla" else device_of(target),
        "machine": {key: cpu[key] for key in ("model", "architecture", "usable_cores", "instruction_sets")},
        "network": {
            "arch": model.arch,
            "width": model.width,
            "activation": model.activation,
            "num_classes": model.num_classes,
            "size": recipe.data.preprocess.size,
        },
        "attention": {
            "kind": attention.kind,
            "where": attention.where if isinstance(attention.where, str) else list(attention.where),
            "options": dict(attention.options),
            "edge_form": attention.edge_form,
        },
        "policies": list(spec.policies) if spec else None,
        "by_size": spec.by_size if spec else None,
        "rank_by": spec.rank_by if spec else None,
    }


def user_cache() -> Path:
    """Return the folder for what can be made again: ``$EDGEATTN_CACHE``, or the user's cache folder."""
    own = os.environ.get("EDGEATTN_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeattn"
