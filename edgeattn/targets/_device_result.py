"""``result.json`` of a kit's run on a device: hostile until checked, so every field has its type and bounds."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from edgeattn.errors import TargetUnavailable

__all__ = ["LARGEST_RESULT_BYTES", "DeviceResult", "parse_result"]

LARGEST_RESULT_BYTES = 16 << 20

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)

Text = Annotated[str, Field(max_length=2000)]
Name = Annotated[str, Field(max_length=200)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Facts = Annotated[dict[Name, JsonValue], Field(max_length=64)]


class DeviceError(BaseModel):
    """Why a run failed there."""

    model_config = _STRICT

    kind: Literal["lacking", "job", "runtime", "mismatch", "disk", "system"]
    message: Text


class DeviceRuntime(BaseModel):
    """What ran the model."""

    model_config = _STRICT

    name: Literal["tensorrt", "trtexec", "ort"]
    version: Name


class DeviceEngine(BaseModel):
    """The engine on the device."""

    model_config = _STRICT

    file: Annotated[str, Field(pattern=r"^engines/[0-9a-f]{24}\.(plan|onnx)$")]
    resumed: bool
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=1, le=1 << 34)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DeviceReference(BaseModel):
    """How the outputs compare with those that the kit carries."""

    model_config = _STRICT

    n: Annotated[int, Field(ge=1)]
    agreement: Share
    top1: Share | None
    max_abs_diff: Finite | None
    tolerance: Finite | None
    runtime: Name
    passed: bool


class DeviceOutputs(BaseModel):
    """A file of outputs."""

    model_config = _STRICT

    file: Literal["outputs.npy"]
    sha256: Sha256
    shape: Annotated[list[Annotated[int, Field(ge=1, le=1 << 24)]], Field(min_length=2, max_length=8)]


class DeviceTiming(BaseModel):
    """How long one inference takes, on the device's clock."""

    model_config = _STRICT

    p50_ms: Milliseconds
    p90_ms: Milliseconds
    p99_ms: Milliseconds
    mean_ms: Milliseconds
    runs: Annotated[int, Field(ge=1, le=1_000_000)]
    warmup_runs: Annotated[int, Field(ge=0)]
    threads: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    clock: Name
    samples_ns: Annotated[
        list[Annotated[int, Field(ge=0, le=1 << 53)]], Field(min_length=1, max_length=1_000_000)
    ]
    state_before: Facts
    state_after: Facts


class DeviceLayer(BaseModel):
    """Time of one kernel."""

    model_config = _STRICT

    name: Annotated[str, Field(max_length=500)]
    latency_us: Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]


class DeviceResult(BaseModel):
    """``result.json``."""

    model_config = _STRICT

    schema_version: Literal[1]
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,80}$")]
    status: Literal["ok", "failed"]
    error: DeviceError | None
    machine: Facts
    runtime: DeviceRuntime | None = None
    support: Facts = {}
    engine: DeviceEngine | None = None
    reference: DeviceReference | None = None
    outputs: DeviceOutputs | None = None
    timing: DeviceTiming | None = None
    layers: Annotated[list[DeviceLayer], Field(max_length=20_000)] = []


def parse_result(data: bytes, job_id: str) -> DeviceResult:
    """Read a device's result.

    Args:
        data: The file.
        job_id: Of the job that it must be about.

    Raises:
        TargetUnavailable: If it is not valid, or about another job.
    """
    if len(data) > LARGEST_RESULT_BYTES:
        raise TargetUnavailable(f"The device's result has {len(data)} bytes; at most {LARGEST_RESULT_BYTES}.")
    try:
        value: Any = json.loads(data)
        result = DeviceResult.model_validate(value)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise TargetUnavailable(
            f"The device's result is not valid: {where}: {first['msg']}. Is another version of the kit there?"
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise TargetUnavailable("The device's result is not JSON. Run the same command again.") from exc
    if result.id != job_id:
        raise TargetUnavailable(f"The device's result is about job {result.id}, expected {job_id}.")
    return result
