"""What tuning found, kept for the next build on the same machine with the same runtime."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import edgeattn
from edgeattn.artifact import read_json, write_json
from edgeattn.errors import ArtifactError
from edgeattn.measure.environment import describe_environment
from edgeattn.quant.config import GatePolicy
from edgeattn.quant.plan import Profile
from edgeattn.recipe import Recipe
from edgeattn.targets import Target, device_of

__all__ = [
    "Candidate",
    "GateRecord",
    "GateRow",
    "GateTrial",
    "PolicyCost",
    "Stage",
    "Tuning",
    "TuningStore",
    "tuning_key",
    "user_cache",
]

# Clouds give several generations of a processor one name; what is fastest on one need not be on the next.
_MACHINE_KEYS = ("model", "generation", "architecture", "usable_cores", "instruction_sets")
_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Stage = Literal["start", "form", "policy", "size", "gate"]


class Candidate(BaseModel):
    """One way to build the network, timed against the default in alternation.

    Attributes:
        stage: ``"start"``, which the first ones are compared with, ``"form"``, ``"policy"``, ``"size"`` or ``"gate"``.
        forms: Edge form by mechanism or module path.
        policy: Gate policy.
        gates: Module paths whose policy was another one, with that policy; the gates of one map size.
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
    gates: dict[str, GatePolicy] = Field(default_factory=dict)
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


class PolicyCost(BaseModel):
    """What a policy would change at one gate.

    Attributes:
        policy: The policy.
        time: Change of the network's latency, as a share of it, against the default policy; below 0 is faster. A
            like part of what all gates of that map size change together.
        time_interval: 95 % interval of `time`; one that holds 0 counts as none.
        noise: By profile, power of the logits' error over the power of the logits, with only this gate quantized.
    """

    model_config = _STRICT

    policy: GatePolicy
    time: float
    time_interval: tuple[float, float]
    noise: dict[Profile, Annotated[float, Field(ge=0)]]


class GateRow(BaseModel):
    """One gate, with the policy that it takes.

    Attributes:
        module: Path of the attention module.
        policy: What it takes.
        pinned: Whether the recipe says so.
        options: What each policy costs, the default first.
    """

    model_config = _STRICT

    module: str
    policy: GatePolicy
    pinned: bool
    options: list[PolicyCost]


class GateTrial(BaseModel):
    """An assignment that was calibrated on one half of the calibration images and measured on the other.

    Attributes:
        policy: Of the gates that `gates` does not name.
        gates: Policy by module path.
        agreement: By profile, the share of images with the float network's answer.
        sqnr_db: By profile, of the logits.
        keeps: Whether the bounds are kept.
    """

    model_config = _STRICT

    policy: GatePolicy
    gates: dict[str, GatePolicy]
    agreement: dict[Profile, float]
    sqnr_db: dict[Profile, float]
    keeps: bool


class GateRecord(BaseModel):
    """Which policy each gate of a trained network takes, and why.

    Attributes:
        key: What it holds for: a tuning's key, its times, the network's graph, calibration and bounds.
        policy: Of the gates that `gates` does not name.
        gates: Policy by module path.
        rows: Every gate, in the network's order.
        trials: What was calibrated and measured, in order; the last one of whole policies is the fallback.
        ratio: Latency of the mix over that of one policy for all, timed in alternation; None where no mix was.
        ratio_interval: 95 % interval of `ratio`.
        why: Why a mix was taken, or was not.
    """

    model_config = _STRICT

    version: Literal[1] = 1
    key: dict[str, Any]
    policy: GatePolicy
    gates: dict[str, GatePolicy]
    rows: list[GateRow]
    trials: list[GateTrial]
    ratio: float | None = None
    ratio_interval: tuple[float, float] | None = None
    why: str


_Record = TypeVar("_Record", Tuning, GateRecord)


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
        return self._load(key, Tuning)

    def load_gates(self, key: dict[str, Any]) -> GateRecord | None:
        """Return what was chosen for the gates of one trained network; None if there is none.

        Raises:
            ArtifactError: If the file is not such a record, or another key's.
        """
        return self._load(key, GateRecord)

    def save(self, record: Tuning | GateRecord) -> Path:
        """Keep a record, whole or not at all; return its file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return write_json(self.path(record.key), record.model_dump(mode="json"))

    def _load(self, key: dict[str, Any], kind: type[_Record]) -> _Record | None:
        path = self.path(key)
        if not path.exists():
            return None
        try:
            record = kind.model_validate(read_json(path))
        except ValidationError as exc:
            raise ArtifactError(f"{path} is not a record of tuning. Delete it to tune again.") from exc
        if record.key != key:
            raise ArtifactError(f"{path} was made for another network. Delete it to tune again.")
        return record


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
        "machine": {key: cpu[key] for key in _MACHINE_KEYS},
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
        "gate_policies": dict(recipe.quant.gate_policies),
        "by_size": spec.by_size if spec else None,
        "by_gate": spec.by_gate if spec else None,
        "rank_by": spec.rank_by if spec else None,
    }


def user_cache() -> Path:
    """Return the folder for what can be made again: ``$EDGEATTN_CACHE``, or the user's cache folder."""
    own = os.environ.get("EDGEATTN_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeattn"
