"""The report: everything one run measured, as a versioned JSON file and one HTML page.

``python -m edgeattn.report`` prints the JSON schema of ``report.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from edgeattn.artifact import atomic_write, read_json, write_bytes
from edgeattn.errors import ArtifactError

if TYPE_CHECKING:
    from edgeattn.report_inputs import InputSheet

__all__ = [
    "SCHEMA_VERSION",
    "EngineFile",
    "EpochResult",
    "Fp32Result",
    "LatencyPair",
    "LatencyResult",
    "LayerResult",
    "LayerTimeResult",
    "ReasonResult",
    "Report",
    "StageResult",
    "TargetResult",
    "load_report",
    "report_schema",
    "write_report",
]

SCHEMA_VERSION = 1

_STRICT = ConfigDict(extra="forbid", validate_assignment=True)


def _finite_or_none(value: Any) -> Any:
    # JSON has no infinity: the SQNR of identical outputs is null.
    return None if isinstance(value, float) and not math.isfinite(value) else value


Finite = Annotated[float | None, BeforeValidator(_finite_or_none)]
Share = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[tuple[float, float] | None, Field(description="Low and high end of the 95 % interval.")]
Milliseconds = Annotated[float, Field(ge=0)]


class ReasonResult(BaseModel):
    """One accepted bound, judged."""

    model_config = _STRICT

    bound: Annotated[str, Field(description="Its key under accept, such as top1_delta_max.")]
    target: Annotated[str | None, Field(description="null: it is about the float network.")] = None
    wanted: Finite = None
    got: Annotated[Finite, Field(description="null: not measured, or not finite.")] = None
    passed: bool
    certain: Annotated[
        bool | None,
        Field(description="Whether the whole 95 % interval lies on that side; null: no interval."),
    ] = None
    text: Annotated[str, Field(description="The same for people, with figures.")]


class Fp32Result(BaseModel):
    """The float network on the measured split."""

    model_config = _STRICT

    top1: Share | None = None
    n: Annotated[int, Field(ge=0, description="Images measured.")]
    top1_interval: Interval = None


class StageResult(BaseModel):
    """One step of the run."""

    model_config = _STRICT

    name: str
    seconds: Annotated[float, Field(ge=0)]
    resumed: Annotated[bool, Field(description="Its result was there from an earlier run.")] = False


class EpochResult(BaseModel):
    """One epoch of training."""

    model_config = _STRICT

    stage: Literal["float", "qat"]
    epoch: Annotated[int, Field(ge=0)]
    loss: Finite = None
    top1: Annotated[Share | None, Field(description="Of the validation split.")] = None
    learning_rate: Finite = None
    seconds: Finite = None


class EngineFile(BaseModel):
    """The engine that a target built."""

    model_config = _STRICT

    path: Annotated[str, Field(description="Relative to the report's folder.")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=0)]


class LatencyResult(BaseModel):
    """How long one inference takes."""

    model_config = _STRICT

    p50_ms: Milliseconds
    p90_ms: Milliseconds
    p99_ms: Milliseconds
    mean_ms: Milliseconds | None = None
    runs: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=0)]
    batch: Annotated[int, Field(ge=1)]
    warmup_runs: Annotated[int | None, Field(ge=0)] = None
    properties: Annotated[dict[str, JsonValue], Field(description="Pinning, precision, clock.")] = Field(
        default_factory=dict
    )


class LatencyPair(BaseModel):
    """INT8 and FP32 on one target, measured in alternation."""

    model_config = _STRICT

    int8: LatencyResult | None = None
    fp32: LatencyResult | None = None


class LayerResult(BaseModel):
    """How far quantization moved one tensor inside the network."""

    model_config = _STRICT

    name: str
    module: str | None = None
    sqnr_db: Finite = None


class SensitivityResult(BaseModel):
    """What the quantization of one layer, or of one gate as a whole, costs the outputs."""

    model_config = _STRICT

    name: str
    module: str | None = None
    is_gate: bool = False
    alone_sqnr_db: Annotated[Finite, Field(description="Of the outputs with only this one in INT8.")] = None
    gain_db: Annotated[
        Finite, Field(description="By how much the INT8 network's SQNR rises with this one in float.")
    ] = None


class DomainResult(BaseModel):
    """Whether calibration and evaluation images are alike to the float network."""

    model_config = _STRICT

    distance: Annotated[
        float,
        Field(ge=0, le=1, description="Energy distance of the activations' extents; 0: one distribution."),
    ]
    p_value: Annotated[float, Field(ge=0, le=1, description="Share of permutations at least as far apart.")]
    calibration_images: Annotated[int, Field(ge=0)]
    evaluation_images: Annotated[int, Field(ge=0)]
    is_unlike: Annotated[bool, Field(description="Neither chance nor too small to matter.")]
    tensors: Annotated[list[str], Field(description="Where they differ most.")] = Field(default_factory=list)

    @property
    def warning(self) -> str | None:
        """What a user should know and do; None where the sets are alike."""
        if not self.is_unlike:
            return None
        return (
            f"The calibration images are unlike the evaluation images (energy distance {self.distance:.2f}, chance "
            f"{self.p_value:.3f}; most at {', '.join(self.tensors)}): ranges may not fit, and INT8 may lose accuracy. "
            "Calibrate with images of the kind that the network will see."
        )


class LayerTimeResult(BaseModel):
    """Time of one executed layer, as the runtime reports it."""

    model_config = _STRICT

    name: str
    kind: str = ""
    dtype: str = ""
    latency_us: Annotated[float, Field(ge=0)]
    module: str | None = None


class TargetResult(BaseModel):
    """What one target built and how it did."""

    model_config = _STRICT

    status: Annotated[
        Literal["ok", "built", "unavailable", "failed"],
        Field(
            description="ok: built and measured. built: the engine was made, and running it needs a device that "
            "is not here. unavailable: see reason. failed: see error."
        ),
    ]
    reason: str | None = None
    error: str | None = None
    profile: Annotated[
        Literal["s8", "u8", "fp32"] | None, Field(description="The QDQ spelling it was fed.")
    ] = None
    engine: EngineFile | None = None
    build: Annotated[dict[str, JsonValue], Field(description="What the build reported.")] = Field(
        default_factory=dict
    )
    checked_by: Annotated[
        str | None,
        Field(
            description="Accuracy figures come from this runtime on the same QDQ file, because the engine cannot "
            "run here; null: from the engine itself."
        ),
    ] = None
    n: Annotated[int | None, Field(ge=0, description="Images measured.")] = None
    top1: Share | None = None
    top1_interval: Interval = None
    top1_delta: Annotated[float | None, Field(ge=-1, le=1, description="INT8 minus FP32.")] = None
    top1_delta_interval: Interval = None
    agreement: Annotated[Share | None, Field(description="Share of images with FP32's answer.")] = None
    agreement_interval: Interval = None
    sqnr_db: Annotated[Finite, Field(description="Of the outputs; null: not measured, or identical.")] = None
    outputs_sqnr_db: Annotated[
        dict[str, Finite],
        Field(description="Of each output by itself, where there are several; null: identical."),
    ] = Field(default_factory=dict)
    kl: Annotated[Finite, Field(description="Mean KL divergence from FP32's softmax, in nats.")] = None
    graph_sqnr_db: Annotated[
        Finite,
        Field(
            description="Of the engine's outputs against those of its own quantized graph, computed operator by operator "
            "for some of the images; null: not measured, or identical."
        ),
    ] = None
    graph_warning: Annotated[
        str | None,
        Field(description="Set where the engine differs more from its graph than that does from FP32."),
    ] = None
    mcnemar_p: Annotated[float | None, Field(ge=0, le=1)] = None
    latency: LatencyPair = Field(default_factory=LatencyPair)
    speedup: Annotated[Finite, Field(description="FP32 p50 over INT8 p50: the median ratio.")] = None
    speedup_interval: Interval = None
    layers: list[LayerResult] = Field(default_factory=list)
    layer_times: list[LayerTimeResult] = Field(default_factory=list)


class Report(BaseModel):
    """Everything that one run measured."""

    model_config = _STRICT

    schema_version: Annotated[int, Field(ge=1)] = SCHEMA_VERSION
    recipe: dict[str, JsonValue]
    fingerprint: Annotated[str, Field(description="SHA-256 of the recipe's canonical JSON.")]
    environment: dict[str, JsonValue] = Field(default_factory=dict)
    verdict: Literal["pass", "fail"]
    reasons: list[ReasonResult] = Field(default_factory=list)
    fp32: Fp32Result
    stages: list[StageResult] = Field(default_factory=list)
    training: list[EpochResult] = Field(default_factory=list)
    quant: Annotated[dict[str, JsonValue], Field(description="Summary of the quantization plan.")] = Field(
        default_factory=dict
    )
    sensitivity: Annotated[
        dict[str, list[SensitivityResult]],
        Field(description="By profile: each layer and gate by itself, on calibration images."),
    ] = Field(default_factory=dict)
    domain: Annotated[
        DomainResult | None,
        Field(description="Calibration against evaluation images; null: too few to tell."),
    ] = None
    targets: dict[str, TargetResult] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.recipe.get("name", "unnamed"))

    @property
    def has_exact_grids(self) -> bool:
        """Whether the run was made with ``quant.ptq.exact``."""
        value: Any = self.recipe
        for key in ("quant", "ptq", "exact"):
            value = value.get(key) if isinstance(value, dict) else None
        return value is True


def write_report(report: Report, folder: Path, inputs: InputSheet | None = None) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html`` into `folder`, each whole or not at all.

    Args:
        report: What was measured.
        folder: Where to.
        inputs: A picture of the network's inputs, for the page.

    Returns:
        The two paths.

    Raises:
        ArtifactError: If a file cannot be written.
    """
    from edgeattn.report_html import render_html

    json_path, html_path = folder / "report.json", folder / "report.html"
    write_bytes(json_path, (report.model_dump_json(indent=2) + "\n").encode())
    html = render_html(report, inputs)
    with atomic_write(html_path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return json_path, html_path


def load_report(path: Path | str) -> Report:
    """Read a ``report.json``, or the one in a run's folder.

    Raises:
        ArtifactError: If it is missing, is not a report, or was written by a newer version.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "report.json"
    value = read_json(path)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema_version {version}; this edgeattn reads up to {SCHEMA_VERSION}. Upgrade edgeattn."
        )
    try:
        return Report.model_validate(value)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise ArtifactError(
            f"{path} is not an edgeattn report: {where}: {first['msg']} ({exc.error_count()} problems). "
            "Name a report.json that `edgeattn run` wrote."
        ) from exc


def report_schema() -> Mapping[str, Any]:
    """Return the JSON schema of ``report.json``."""
    schema = Report.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "edgeattn report"
    return schema


if __name__ == "__main__":
    import sys

    sys.stdout.write(json.dumps(report_schema(), indent=2) + "\n")
