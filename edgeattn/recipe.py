"""The recipe: what one run does, as a frozen and validated value read from YAML.

``python -m edgeattn.recipe`` prints the JSON schema of a recipe file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic import model_validator as _model_validator

from edgeattn.data.spec import DataSpec
from edgeattn.errors import RecipeError, close_matches_hint
from edgeattn.models import architectures
from edgeattn.quant.config import QuantConfig
from edgeattn.recipe_errors import explain
from edgeattn.recipe_tune import TuneSpec
from edgeattn.recipe_yaml import Located, apply_override, parse_yaml
from edgeattn.train.config import TrainConfig

__all__ = [
    "Accept",
    "AttentionSpec",
    "MeasureSpec",
    "ModelSpec",
    "Recipe",
    "TuneSpec",
    "load_recipe",
    "recipe_schema",
]

_FROZEN = ConfigDict(extra="forbid", frozen=True)

Share = Annotated[float, Field(ge=0, le=1)]


def _check_registered(name: str, noun: str, find_names: Callable[[], Iterable[str]]) -> str:
    """Refuse a name that the registry lacks; without the registry's packages, believe it."""
    try:
        known = set(find_names())
    except ImportError:
        return name
    if name not in known:
        raise ValueError(f"unknown {noun} {name!r}. {close_matches_hint(name, known)}")
    return name


def _attention_names() -> Iterable[str]:
    from edgeattn.attention import attentions

    return {"none", *(name for name in attentions if attentions.get(name).contract in ("map", "convolution"))}


def _target_names() -> Iterable[str]:
    from edgeattn.targets import target_names

    return target_names()


def _check_attention(name: str) -> str:
    return _check_registered(name, "attention", _attention_names)


def _check_edge_form(kind: str, form: str | None) -> None:
    try:
        from edgeattn.attention import attentions
    except ImportError:
        return
    if form is not None and kind in attentions and form not in attentions.get(kind).edge_forms:
        hint = close_matches_hint(form, attentions.get(kind).edge_forms)
        raise ValueError(f"{kind} has no edge form {form!r}. {hint}")


def _check_target(name: str) -> str:
    return _check_registered(name, "target", _target_names)


class ModelSpec(BaseModel):
    """The backbone and where its weights come from."""

    model_config = _FROZEN

    arch: Literal["mobilenet_v2", "efficientnet_b0", "efficientnet_lite0"] = "mobilenet_v2"
    width: Annotated[float, Field(gt=0, le=4, description="Multiplier of the channel counts.")] = 1.0
    activation: Annotated[
        Literal["relu", "relu6", "swish", "h_swish"] | None,
        Field(description="null: the architecture's own."),
    ] = None
    dropout: Annotated[float, Field(ge=0, lt=1, description="Before the classifier.")] = 0.2
    weights: Annotated[
        Path | None,
        Field(
            description="Pretrained weights (safetensors, or a PyTorch state dict); relative to the recipe, "
            "environment variables expanded. null: random."
        ),
    ] = None
    num_classes: Annotated[
        int | None, Field(ge=2, le=100_000, description="null: as many as the data has.")
    ] = None

    @_model_validator(mode="after")
    def _activation_suits(self) -> ModelSpec:
        known = architectures.get(self.arch).activations
        if self.activation is not None and self.activation not in known:
            raise ValueError(f"{self.arch} has no activation {self.activation!r}. Known: {', '.join(known)}.")
        return self


class AttentionSpec(BaseModel):
    """Which attention mechanism goes where."""

    model_config = _FROZEN

    kind: Annotated[
        str,
        AfterValidator(_check_attention),
        Field(description="A name that `edgeattn attentions` lists, or none."),
    ] = "none"
    where: Annotated[
        Literal["authors", "hidden", "output"] | Annotated[tuple[str, ...], Field(min_length=1)],
        Field(
            description="authors: where the mechanism's paper puts it. hidden: after the depthwise convolution. "
            "output: after the projection. Or paths of modules, such as features.*.conv. A mechanism that is a "
            "convolution (condconv, dcn) takes the place of the depthwise ones, or of those at the paths."
        ),
    ] = "authors"
    identity_start: Annotated[
        bool, Field(description="Start every gate as the identity, so that inserting it moves no output.")
    ] = False
    options: Annotated[
        dict[str, bool | int | float | str | None],
        Field(description="Passed to the mechanism's constructor."),
    ] = Field(default_factory=dict)
    edge_form: Annotated[
        str | None, Field(description="Name of the exact form that is exported; null: the target's default.")
    ] = None

    @_model_validator(mode="after")
    def _none_takes_nothing(self) -> AttentionSpec:
        if self.kind == "none" and (self.options or self.edge_form or self.where != "authors"):
            raise ValueError(
                "attention.kind none takes no options, edge_form or where; remove them or name a kind"
            )
        if self.replaces_convolutions and (self.where in ("hidden", "output") or self.identity_start):
            raise ValueError(
                f"attention.kind {self.kind} takes the place of convolutions: it has no place {self.where!r} and no "
                "start as the identity; set where to authors or to paths of convolutions, and identity_start to false"
            )
        _check_edge_form(self.kind, self.edge_form)
        return self

    @property
    def replaces_convolutions(self) -> bool:
        """Whether the mechanism is a convolution itself, and takes the place of others."""
        try:
            from edgeattn.attention import attentions
        except ImportError:
            return False
        return self.kind in attentions and attentions.get(self.kind).contract == "convolution"


class MeasureSpec(BaseModel):
    """How long and on what engines are measured."""

    model_config = _FROZEN

    latency_seconds: Annotated[
        float,
        Field(gt=0, le=3600, description="Time an engine this long, or for latency_runs, after warm-up."),
    ] = 10.0
    latency_runs: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    quick: Annotated[bool, Field(description="64 timed inferences: for a first look, not for a table.")] = (
        False
    )
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    sensitivity_images: Annotated[
        int,
        Field(
            ge=0,
            le=256,
            description="Calibration images for the sensitivity of layers; 0: do not measure it.",
        ),
    ] = 8
    evaluate_on: Literal["validation"] = "validation"
    limit: Annotated[int | None, Field(ge=1, description="Use only the first images of the split.")] = None


class Accept(BaseModel):
    """Bounds that a run must meet; one that is missed makes the verdict "fail" and the exit code 4."""

    model_config = _FROZEN

    float_top1_min: Annotated[Share | None, Field(description="Top-1 of the float network.")] = None
    top1_delta_max: Annotated[
        Share | None, Field(description="Largest loss of top-1 from float to INT8, on every target.")
    ] = None
    agreement_min: Annotated[
        Share | None, Field(description="Share of images with float's answer, on targets fed u8.")
    ] = None
    s8_agreement_min: Annotated[
        Share | None, Field(description="The same on targets fed s8; null: agreement_min.")
    ] = None
    sqnr_db_min: Annotated[
        float | None, Field(ge=-50, le=200, description="Signal to quantization noise of the outputs.")
    ] = None
    int8_coverage_min: Annotated[
        Share | None,
        Field(
            description="Share of the layers with weights, gates left out, that run in INT8, on targets that tell "
            "without running: TensorRT's two. 1 also forbids float32 kernels before the last layer."
        ),
    ] = None
    speedup_min: Annotated[
        float | None, Field(gt=0, le=1000, description="FP32 p50 over INT8 p50, where both were timed.")
    ] = None


class Recipe(BaseModel):
    """One reproducible run: model, attention, data, training, quantization, targets and bounds."""

    model_config = _FROZEN

    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="Also the default folder's name."),
    ]
    description: Annotated[str, Field(max_length=2000)] = ""
    model: ModelSpec = ModelSpec()
    attention: AttentionSpec = AttentionSpec()
    data: DataSpec
    train: Annotated[TrainConfig | None, Field(description="null: no float training.")] = None
    calibration: Annotated[Path, Field(description="The calibration set's manifest; relative to the recipe.")]
    quant: QuantConfig = QuantConfig()
    tune: Annotated[
        TuneSpec | None, Field(description="null: the forms and the policy that the recipe says.")
    ] = None
    targets: Annotated[
        tuple[Annotated[str, AfterValidator(_check_target)], ...],
        Field(min_length=1, description="Names that `edgeattn targets` lists."),
    ]
    measure: MeasureSpec = MeasureSpec()
    accept: Accept = Accept()

    # Path fields as the file spells them: the same recipe is the same on every machine.
    _written_paths: dict[str, str] = PrivateAttr(default_factory=dict)

    @_model_validator(mode="after")
    def _is_consistent(self) -> Recipe:
        if len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets names one twice: {', '.join(self.targets)}")
        if self.train is None and self.model.weights is None:
            raise ValueError(
                "nothing gives the network weights: set model.weights, or train (train.epochs 0 keeps random ones)"
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values, with paths as they were written."""
        value = self.model_dump(mode="json")
        for dotted, written in self._written_paths.items():
            *parents, last = dotted.split(".")
            holder = value
            for parent in parents:
                holder = holder[parent]
            holder[last] = written
        return value

    def fingerprint(self) -> str:
        """Return the SHA-256 of the canonical JSON.

        It identifies the request. The files that the request names have hashes of their own.
        """
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


_PATH_FIELDS = ("data.root", "model.weights", "calibration")


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: The YAML file.
        overrides: ``a.b=value`` each, the value in YAML, applied in order.

    Raises:
        RecipeError: If the file cannot be read, or says something that is not valid; the message names
            the key, the line (or the override), what was got, and close matches.
    """
    path = Path(path)
    located = parse_yaml(path)
    for override in overrides:
        apply_override(located, override)
    written = _resolve_paths(located, path.absolute().parent)
    try:
        recipe = Recipe.model_validate(located.value)
    except ValidationError as exc:
        raise RecipeError(explain(exc, located, Recipe)) from exc
    recipe._written_paths.update(written)
    return recipe


def _resolve_paths(located: Located, folder: Path) -> dict[str, str]:
    """Make paths absolute in place and return how they were written."""
    written: dict[str, str] = {}
    for dotted in _PATH_FIELDS:
        *parents, last = keys = dotted.split(".")
        holder: Any = located.value
        for parent in parents:
            holder = holder.get(parent) if isinstance(holder, dict) else None
        text = holder.get(last) if isinstance(holder, dict) else None
        if not isinstance(text, str):
            continue
        origin = located.describe(keys)
        if "\0" in text or not text.strip():
            raise RecipeError(f"{origin}: {dotted}: expected a path, got {text!r}.")
        written[dotted] = text
        # An override's relative path is relative to the recipe too: one rule, wherever it is written.
        holder[last] = str(folder / _expand(text, f"{origin}: {dotted}"))
    return written


def _expand(text: str, where: str) -> str:
    expanded = os.path.expanduser(os.path.expandvars(text))
    if unset := re.findall(r"\$\{?(\w+)\}?", expanded):
        names = " and ".join(dict.fromkeys(unset))
        raise RecipeError(
            f"{where}: {text!r} uses the environment variable {names}, which is not set. "
            f"Set it first: export {unset[0]}=/path/to/the/folder"
        )
    return expanded


def recipe_schema() -> Mapping[str, Any]:
    """Return the JSON schema of a recipe file."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "edgeattn recipe"
    return schema


if __name__ == "__main__":
    import sys

    sys.stdout.write(json.dumps(recipe_schema(), indent=2) + "\n")
