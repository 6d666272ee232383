"""OpenVINO on the CPU.

The engine is OpenVINO's intermediate representation: an ``.xml`` file, and its weights in a ``.bin`` file
beside it that is hashed too. What is not INT8 runs in the precision asked for, float32 unless told
otherwise: left to itself, OpenVINO takes bfloat16 where the processor has it, and parity is lost.

Which kernel each convolution of an INT8 engine runs in is chosen by timing, see `edgeattn.targets._openvino_kernels`.

Where its generator of fused element-wise kernels ("snippets") gives up on a graph, that graph is compiled without it.

On ARM64 its low-precision transformations are off, for the reason that `edgeattn.targets.arm64` gives.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeattn.artifact import OnnxArtifact, sha256_of_file, write_bytes
from edgeattn.errors import ArtifactError, ModelError, RecipeError, TargetUnavailable
from edgeattn.targets._common import (
    RuntimeTarget,
    check_feeds,
    check_threads,
    clock_runs,
    closed_error,
    install_command,
    one_line,
)
from edgeattn.targets._openvino_kernels import KernelChoice, choose_kernels
from edgeattn.targets.base import Availability, Engine, Feeds, LayerTime, Outputs, Session, TimingPlan
from edgeattn.targets.executed import ExecutedLayer, openvino_layers

__all__ = ["OpenVinoCpu"]

_PRECISIONS = ("f32", "bf16", "f16")
_INT8 = frozenset({"int8", "uint8"})
_CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution", "Deconvolution"})
# How the CPU plugin spells element types at the end of a primitive's name.
_DTYPES = {
    "i8": "int8",
    "u8": "uint8",
    "f32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "i32": "int32",
    "i64": "int64",
}


_CORES: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def _core(openvino: ModuleType) -> Any:
    """Return the process's one `openvino.Core`, which lives as long as somebody holds it.

    Each gives the thread an alternate stack for signals, and frees it when it goes (2026.4). When the first of two goes
    first, that thread is left with freed memory, and the next signal (Ctrl-C) ends the process with SIGSEGV. One that
    stays for good would leave a forked process with a plugin without threads.
    """
    core = _CORES.get(os.getpid())
    if core is None:
        core = _CORES[os.getpid()] = openvino.Core()
    return core


class OpenVinoCpu(RuntimeTarget):
    """OpenVINO's CPU plugin, one stream, tuned for latency.

    Args:
        inference_precision: ``"f32"``, ``"bf16"`` or ``"f16"``: what runs everything that is not INT8.
        cpu_pinning: Whether threads are pinned to cores; None leaves it to OpenVINO. What was used is
            recorded in the session's properties.
        low_precision: Whether OpenVINO runs its low-precision transformations, without which nothing is computed in
            INT8; None lets it, except on ARM64.
        timed_kernels: Whether the kernels of INT8 engines are chosen by timing, which takes about as long as compiling
            the engine six times; otherwise each layer runs in OpenVINO's first choice.

    Raises:
        RecipeError: If the precision is none of those.
    """

    name = "openvino-cpu"
    profile = "u8"
    package = "openvino"
    adds_float_biases = True
    builds_apart = True
    """A graph that it cannot take may end the process."""

    def __init__(
        self,
        *,
        inference_precision: str = "f32",
        cpu_pinning: bool | None = None,
        low_precision: bool | None = None,
        timed_kernels: bool = True,
    ) -> None:
        if inference_precision not in _PRECISIONS:
            raise RecipeError(
                f"inference_precision is {inference_precision!r}; expected one of {', '.join(_PRECISIONS)}."
            )
        self._inference_precision = inference_precision
        self._cpu_pinning = cpu_pinning
        is_arm = platform.machine() in ("aarch64", "arm64")
        self._low_precision = not is_arm if low_precision is None else low_precision
        self._timed_kernels = timed_kernels and platform.machine() in ("x86_64", "AMD64")

    def probe(self) -> Availability:
        """Say whether OpenVINO loads here and has its CPU plugin."""
        install = install_command(self.package)
        try:
            openvino = self._load()
            devices = list(_core(openvino).available_devices)
        except TargetUnavailable as exc:
            return Availability(False, False, str(exc), install)
        except Exception as exc:
            return Availability(False, False, f"OpenVINO does not start: {one_line(exc)}", install)
        version = _version(openvino)
        if "CPU" not in devices:
            return Availability(
                False, False, f"OpenVINO has no CPU plugin here, only {devices}", install, version
            )
        return Availability(True, True, version=version)

    def build(self, artifact: OnnxArtifact, workdir: Path) -> Engine:
        """Convert the lowered model to OpenVINO's files in `workdir` and record what the CPU makes of it.

        Raises:
            TargetUnavailable: If OpenVINO is absent.
            ModelError: If OpenVINO cannot read or compile the model.
            ArtifactError: If the model's file changed, or the engine cannot be written.
        """
        openvino = self._load()
        self._check_artifact(artifact)
        path = self._engine_path(artifact, workdir, ".xml")
        core = _core(openvino)
        with _mapped(f"OpenVINO cannot read {artifact.path.name}"):
            model = core.read_model(str(artifact.path))
        weights = _save_model(openvino, model, path)
        kernels: dict[str, Any] = {}
        if self._timed_kernels and artifact.profile != "fp32":
            choice, compiled = self._choose_kernels(openvino, core, path)
            kernels["timed_kernels"] = choice.details()
        else:
            compiled = self._compile(core, path, threads=1)
        details = {
            "runtime": f"openvino {_version(openvino)}",
            "inference_precision": self._inference_precision,
            "low_precision": self._low_precision,
            "side_files": {weights.name: sha256_of_file(weights)},
            **kernels,
            **_graph_details(compiled),
        }
        return self._engine(artifact, path, details)

    @contextlib.contextmanager
    def open(self, engine: Engine, *, threads: int = 1) -> Iterator[Session]:
        """Open an engine after checking the hashes of both its files.

        Args:
            engine: An engine of this target.
            threads: Inference threads.

        Raises:
            TargetUnavailable: If OpenVINO is absent.
            ArtifactError: If the engine changed since it was built.
            ModelError: If it is another target's engine, or OpenVINO cannot compile it.
        """
        openvino = self._load()
        self._check_engine(engine, threads)
        weights = engine.path.with_suffix(".bin").name
        if weights not in engine.details.get("side_files", {}):
            # Without its hash the weights could be anything, so an old or edited manifest is refused.
            raise ArtifactError(
                f"Engine {engine.path.name} has no recorded hash of {weights}. Build it again."
            )
        core = _core(openvino)
        compiled = self._compile(core, engine.path, threads)
        properties = {
            "runtime": f"openvino {_version(openvino)}",
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
            "pinning": "cores" if compiled.get_property("ENABLE_CPU_PINNING") else "none",
            "streams": int(compiled.get_property("NUM_STREAMS")),
            "inference_precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
            "low_precision": self._low_precision,
            "instruction_set": _instruction_set(compiled),
            "performance_hint": str(compiled.get_property("PERFORMANCE_HINT")).rpartition(".")[2],
            "clock": "perf_counter_ns around InferRequest.infer",
        }
        session = _OpenVinoSession(self, openvino, core, compiled, engine, threads, properties)
        try:
            yield session
        finally:
            session.close()

    def _choose_kernels(self, openvino: ModuleType, core: Any, path: Path) -> tuple[KernelChoice, Any]:
        """Choose the kernels of the engine at `path`, write them into its file, and compile it."""
        text = path.read_text(encoding="utf-8")
        weights = openvino.Tensor(np.fromfile(path.with_suffix(".bin"), dtype=np.uint8))

        def compile_text(variant: str) -> Any:
            with _mapped(f"OpenVINO cannot compile {path.name}"):
                model = core.read_model(model=variant, weights=weights)
            return self._compile_model(core, model, path.name, 1, PERF_COUNT="YES")

        choice, compiled = choose_kernels(text, compile_text)
        if choice.layers:
            write_bytes(path, choice.text.encode())
        return choice, compiled

    def _compile(self, core: Any, path: Path, threads: int, **more: str) -> Any:
        return self._compile_model(core, str(path), path.name, threads, **more)

    def _compile_model(self, core: Any, model: Any, name: str, threads: int, **more: str) -> Any:
        config = {
            "INFERENCE_PRECISION_HINT": self._inference_precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            **more,
        }
        if self._cpu_pinning is not None:
            config["ENABLE_CPU_PINNING"] = "YES" if self._cpu_pinning else "NO"
        if not self._low_precision:
            config["LP_TRANSFORMS_MODE"] = "NO"
        with _mapped(f"OpenVINO cannot compile {name}"):
            try:
                return core.compile_model(model, "CPU", config)
            except RuntimeError as exc:
                if "snippets" not in str(exc):
                    raise
                # Its fused element-wise kernels do not fit the registers; one by one they do (2026.4.1, AVX-512).
                return core.compile_model(model, "CPU", {**config, "SNIPPETS_MODE": "DISABLE"})


class _OpenVinoSession:
    """An open OpenVINO engine."""

    def __init__(
        self,
        target: OpenVinoCpu,
        openvino: ModuleType,
        core: Any,
        compiled: Any,
        engine: Engine,
        threads: int,
        properties: dict[str, Any],
    ) -> None:
        self._target = target
        self._openvino = openvino
        self._core = core
        self._engine = engine
        self._threads = threads
        self._open_request: Any = compiled.create_infer_request()
        self.properties = properties

    def close(self) -> None:
        """Free the engine's memory."""
        self._open_request = None

    @property
    def _request(self) -> Any:
        if self._open_request is None:
            raise closed_error(self._engine)
        return self._open_request

    def infer(self, feeds: Feeds) -> Outputs:
        """Run once and return every output by name."""
        request = self._request
        self._set_inputs(request, feeds)
        with _mapped(f"OpenVINO failed in {self._engine.path.name}"):
            request.infer(share_outputs=True)
        # The request owns its output memory and writes it again in the next inference.
        return {s.name: np.array(request.get_tensor(s.name).data) for s in self._engine.outputs}

    def time(self, feeds: Feeds, plan: TimingPlan) -> Sequence[int]:
        """Return nanoseconds of each counted inference, inputs already set."""
        check_threads(self._threads, plan)
        self._set_inputs(self._request, feeds)
        infer = self._request.infer
        return clock_runs(lambda: infer(share_outputs=True), plan)

    def layer_times(self, feeds: Feeds, runs: int = 50) -> Sequence[LayerTime]:
        """Return mean time by executed layer, from a second compilation with performance counters."""
        _ = self._request
        compiled = self._target._compile(self._core, self._engine.path, self._threads, PERF_COUNT="YES")
        request = compiled.create_infer_request()
        self._set_inputs(request, feeds)
        totals: dict[str, float] = {}
        kinds: dict[str, tuple[str, str]] = {}
        warmup = min(5, runs)
        for index in range(warmup + runs):
            request.infer(share_outputs=True)
            if index < warmup:
                continue
            for info in request.get_profiling_info():
                if info.status.name != "EXECUTED":
                    continue
                kinds.setdefault(info.node_name, (info.node_type, _dtype_of(info.exec_type)))
                microseconds = info.real_time.total_seconds() * 1e6
                totals[info.node_name] = totals.get(info.node_name, 0.0) + microseconds
        return [LayerTime(name, *kinds[name], latency_us=total / runs) for name, total in totals.items()]

    def executed_graph(self) -> Sequence[ExecutedLayer]:
        """Return the layers of the graph that OpenVINO made of the model, in order of execution."""
        return openvino_layers(self._request.get_compiled_model().get_runtime_model())

    def _set_inputs(self, request: Any, feeds: Feeds) -> None:
        for name, array in check_feeds(self._engine, feeds).items():
            # Copied: the caller's array may change or go away before the request is used.
            request.set_tensor(name, self._openvino.Tensor(array, shared_memory=False))


@contextlib.contextmanager
def _mapped(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        raise ModelError(f"{what}: {one_line(exc)}.") from exc


def _instruction_set(compiled: Any) -> str | None:
    """Return the newest instruction set that the kernels may use, in oneDNN's words; None where it is not said.

    It is the processor's, or the one that the environment variable ``ONEDNN_MAX_CPU_ISA`` names.
    """
    try:
        text = str(compiled.get_property("RUNTIME_REQUIREMENTS"))
    except RuntimeError:
        return None
    found = re.search(r"(?:^|;)isa=([^;]{1,200})", text)
    return found.group(1) if found else None


def _version(openvino: ModuleType) -> str:
    return str(openvino.__version__).split("-", maxsplit=1)[0]


def _save_model(openvino: ModuleType, model: Any, path: Path) -> Path:
    """Write ``path`` and its weights, and return the weights' path.

    OpenVINO writes two files; both are finished under another folder before either takes its place.
    """
    weights = path.with_suffix(".bin")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".openvino-", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            with _mapped(f"OpenVINO cannot write {path.name}"):
                openvino.save_model(model, str(temporary), compress_to_fp16=False)
            os.replace(temporary.with_suffix(".bin"), weights)
            os.replace(temporary, path)
    except OSError as exc:
        raise ArtifactError(
            f"Cannot write {path}: {exc.strerror or exc}. Check that the folder is writable and has space."
        ) from exc
    return weights


def _graph_details(compiled: Any) -> dict[str, Any]:
    """Count what the CPU plugin runs, from the graph it compiled."""
    operators: Counter[str] = Counter()
    int8 = floating = reformats = 0
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kind, primitive = info["layerType"].astype(str), info["primitiveType"].astype(str)
        # Inputs, constants and reshapes in place have no primitive: nothing runs for them.
        if kind in ("Input", "Output", "Const") or primitive.startswith(("unknown", "undef")):
            continue
        operators[kind] += 1
        reformats += kind == "Reorder"
        if kind in _CONVOLUTIONS:
            is_int8 = _dtype_of(primitive) in _INT8
            int8 += is_int8
            floating += not is_int8
    return {
        "int8_convolutions": int8,
        "float_convolutions": floating,
        "kernels": operators.total(),
        "reformats": reformats,
        "operators": dict(sorted(operators.items())),
    }


def _dtype_of(exec_type: str) -> str:
    """Return the element type at the end of a primitive's name, such as ``jit_avx512_I8``."""
    spelled = exec_type.rpartition("_")[2].lower()
    return _DTYPES.get(spelled, spelled)
