"""ONNX Runtime on the CPU.

The engine is the lowered ONNX file itself. A graph that ONNX Runtime optimised and saved is tied to the
instruction set it was made on, and opening the ONNX file takes a fraction of a second, so nothing is lost.
"""

from __future__ import annotations

import contextlib
import json
import platform
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.artifact import OnnxArtifact, write_bytes
from edgeattn.errors import ModelError, TargetUnavailable
from edgeattn.targets._common import (
    RuntimeTarget,
    check_feeds,
    check_threads,
    clock_runs,
    closed_error,
    install_command,
    one_line,
)
from edgeattn.targets.base import Availability, Engine, Feeds, LayerTime, Outputs, Session, TimingPlan
from edgeattn.targets.executed import ExecutedLayer, ort_layers

if TYPE_CHECKING:
    from edgeattn.lower.base import LoweringPass

__all__ = ["OrtCpu"]

_PROVIDERS = ["CPUExecutionProvider"]
_INT8_CONVOLUTIONS = frozenset({"QLinearConv", "ConvInteger"})
_FLOAT_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "NhwcFusedConv"})
_REFORMATS = frozenset({"Transpose", "ReorderInput", "ReorderOutput"})
_NUMPY_NAMES = {"float": "float32", "double": "float64"}


class OrtCpu(RuntimeTarget):
    """ONNX Runtime's CPU execution provider.

    Args:
        allow_spinning: Whether idle worker threads spin for a moment instead of sleeping: faster with
            more than one thread, and it keeps cores busy between inferences.
    """

    name = "ort-cpu"
    profile = "u8"
    package = "onnxruntime"

    def __init__(self, *, allow_spinning: bool = True) -> None:
        self._allow_spinning = bool(allow_spinning)

    def probe(self) -> Availability:
        """Say whether ONNX Runtime loads here."""
        try:
            ort = self._load()
        except TargetUnavailable as exc:
            return Availability(False, False, str(exc), install_command(self.package))
        return Availability(True, True, version=str(ort.__version__))

    def _more_passes(self) -> Sequence[LoweringPass]:
        from edgeattn.lower.float_sums import FloatSums
        from edgeattn.lower.part_resizes import INTERPOLATES_INTEGERS, PartResizes

        is_arm = platform.machine().lower() in ("aarch64", "arm64")
        # A graph may be lowered where nothing runs it: then for releases of today.
        version = self.probe().version
        is_old = bool(version) and tuple(map(int, version.split(".")[:2])) < INTERPOLATES_INTEGERS
        return (
            *((FloatSums(),) if is_arm else ()),
            *((PartResizes(),) if is_old else ()),
        )

    def build(self, artifact: OnnxArtifact, workdir: Path) -> Engine:
        """Copy the lowered model into `workdir` and record what ONNX Runtime makes of it.

        Raises:
            TargetUnavailable: If ONNX Runtime is absent.
            ModelError: If ONNX Runtime cannot load the model.
            ArtifactError: If the model's file changed, or the engine cannot be written.
        """
        ort = self._load()
        self._check_artifact(artifact)
        with tempfile.TemporaryDirectory(prefix="edgeattn-ort-") as folder:
            optimized = Path(folder) / "optimized.onnx"
            options = self._options(ort, threads=1)
            options.optimized_model_filepath = str(optimized)
            _open_session(ort, artifact.path, options)
            details = _graph_details(optimized)
        path = write_bytes(self._engine_path(artifact, workdir, ".onnx"), artifact.path.read_bytes())
        return self._engine(artifact, path, {"runtime": f"onnxruntime {ort.__version__}", **details})

    @contextlib.contextmanager
    def open(self, engine: Engine, *, threads: int = 1) -> Iterator[Session]:
        """Open an engine after checking its hash.

        Args:
            engine: An engine of this target.
            threads: Intra-operator threads.

        Raises:
            TargetUnavailable: If ONNX Runtime is absent.
            ArtifactError: If the engine changed since it was built.
            ModelError: If it is another target's engine, or ONNX Runtime cannot load it.
        """
        ort = self._load()
        self._check_engine(engine, threads)
        session = _open_session(ort, engine.path, self._options(ort, threads))
        properties = {
            "runtime": f"onnxruntime {ort.__version__}",
            "threads": threads,
            # ONNX Runtime sets affinities only when it chooses the number of threads itself.
            "pinning": "none",
            "allow_spinning": self._allow_spinning,
            "clock": "perf_counter_ns around run_with_iobinding",
        }
        opened = _OrtSession(self, ort, session, engine, threads, properties)
        try:
            yield opened
        finally:
            opened.close()

    def _options(self, ort: ModuleType, threads: int) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(self._allow_spinning)))
        # Errors come back as exceptions; printing them as well would only repeat them.
        options.log_severity_level = 4
        return options


class _OrtSession:
    """An open ONNX Runtime engine."""

    def __init__(
        self,
        target: OrtCpu,
        ort: ModuleType,
        session: Any,
        engine: Engine,
        threads: int,
        properties: dict[str, Any],
    ) -> None:
        self._target = target
        self._ort = ort
        self._open_session: Any = session
        self._engine = engine
        self._threads = threads
        self.properties = properties

    def close(self) -> None:
        """Free the engine's memory."""
        self._open_session = None

    @property
    def _session(self) -> Any:
        if self._open_session is None:
            raise closed_error(self._engine)
        return self._open_session

    def infer(self, feeds: Feeds) -> Outputs:
        """Run once and return every output by name."""
        session, arrays = self._session, check_feeds(self._engine, feeds)
        names = [spec.name for spec in self._engine.outputs]
        try:
            values = session.run(names, arrays)
        except Exception as exc:
            raise ModelError(f"ONNX Runtime failed in {self._engine.path.name}: {one_line(exc)}.") from exc
        return dict(zip(names, values, strict=True))

    def time(self, feeds: Feeds, plan: TimingPlan) -> Sequence[int]:
        """Return nanoseconds of each counted inference, inputs and outputs bound in memory."""
        check_threads(self._threads, plan)
        session, arrays = self._session, check_feeds(self._engine, feeds)
        binding = session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, self._ort.OrtValue.ortvalue_from_numpy(array))
        for spec in self._engine.outputs:
            value = self._ort.OrtValue.ortvalue_from_shape_and_type(spec.shape, np.dtype(spec.dtype))
            binding.bind_ortvalue_output(spec.name, value)
        return clock_runs(lambda: session.run_with_iobinding(binding), plan)

    def layer_times(self, feeds: Feeds, runs: int = 50) -> Sequence[LayerTime]:
        """Return mean time by executed node, from ONNX Runtime's profile of a second session.

        ``dtype`` is the element type of the node's first input.
        """
        _, arrays = self._session, check_feeds(self._engine, feeds)
        warmup = min(5, runs)
        with tempfile.TemporaryDirectory(prefix="edgeattn-ort-") as folder:
            options = self._target._options(self._ort, self._threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = _open_session(self._ort, self._engine.path, options)
            for _ in range(warmup + runs):
                session.run(None, arrays)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return _layer_times(events, warmup)

    def executed_graph(self) -> Sequence[ExecutedLayer]:
        """Return the layers of the graph that ONNX Runtime made of the model, in order of execution."""
        _ = self._session
        import onnx

        with tempfile.TemporaryDirectory(prefix="edgeattn-ort-") as folder:
            optimized = Path(folder) / "optimized.onnx"
            options = self._target._options(self._ort, self._threads)
            options.optimized_model_filepath = str(optimized)
            _open_session(self._ort, self._engine.path, options)
            return ort_layers(onnx.load(str(optimized)))


def _open_session(ort: ModuleType, path: Path, options: Any) -> Any:
    try:
        return ort.InferenceSession(str(path), options, providers=_PROVIDERS)
    except Exception as exc:
        raise ModelError(
            f"ONNX Runtime {ort.__version__} cannot load {path.name}: {one_line(exc)}. "
            "Check the model's opset and operators."
        ) from exc


def _graph_details(optimized: Path) -> dict[str, Any]:
    """Count what ONNX Runtime runs, from the graph it optimised."""
    import onnx

    model = onnx.load(str(optimized), load_external_data=False)
    operators = Counter(node.op_type for node in model.graph.node)
    return {
        "int8_convolutions": _count(operators, _INT8_CONVOLUTIONS),
        "float_convolutions": _count(operators, _FLOAT_CONVOLUTIONS),
        "kernels": operators.total(),
        "reformats": _count(operators, _REFORMATS),
        "operators": dict(sorted(operators.items())),
    }


def _count(operators: Counter[str], kinds: frozenset[str]) -> int:
    return sum(operators[kind] for kind in kinds)


def _layer_times(events: Sequence[dict[str, Any]], warmup: int) -> list[LayerTime]:
    """Return the mean of each node's calls, without the first `warmup` of them, in order of execution."""
    calls: dict[str, list[float]] = {}
    kinds: dict[str, tuple[str, str]] = {}
    for event in events:
        if event.get("cat") != "Node" or not str(event.get("name", "")).endswith("_kernel_time"):
            continue
        name = str(event["name"]).removesuffix("_kernel_time")
        arguments = event.get("args", {})
        inputs = arguments.get("input_type_shape") or [{}]
        dtype = next(iter(inputs[0]), "")
        kinds.setdefault(name, (str(arguments.get("op_name", "")), _NUMPY_NAMES.get(dtype, dtype)))
        calls.setdefault(name, []).append(float(event["dur"]))
    return [
        LayerTime(name, *kinds[name], latency_us=float(np.mean(durations[warmup:])))
        for name, durations in calls.items()
        if len(durations) > warmup
    ]
