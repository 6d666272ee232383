"""What TensorRT and TensorRT for RTX share: parsing, building, and the log of both.

Both read the same ONNX graph with explicit Q/DQ into a strongly typed network, so the graph alone says what
runs in which type; only a few builder settings differ.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgeattn.artifact import OnnxArtifact, write_bytes
from edgeattn.errors import ModelError, TargetUnavailable
from edgeattn.targets._common import RuntimeTarget, install_command, one_line
from edgeattn.targets._cuda import CudaDevice, CudaDriver, find_gpu, load_library
from edgeattn.targets._trt_coverage import describe_coverage
from edgeattn.targets._trt_log import describe_layers, parse_layers
from edgeattn.targets._trt_session import TrtSession
from edgeattn.targets.base import Availability, Engine, Session

__all__ = ["LogRecord", "TensorRtTarget", "check_signed_activations", "check_warnings"]

logger = logging.getLogger(__name__)

_BUILD_LOCK = threading.Lock()


class LogRecord(NamedTuple):
    """One message of TensorRT's log: ``severity`` is VERBOSE, INFO, WARNING, ERROR or INTERNAL_ERROR."""

    severity: str
    text: str


class TensorRtTarget(RuntimeTarget):
    """Base of both TensorRT targets.

    Args:
        tf32: Whether what stays float32 may be computed in TF32, as TensorRT does by default. Recorded in
            the engine's details.
    """

    profile = "s8"
    # UINT8 activations parse, with a warning, and give wrong numbers.
    accepted_profiles = frozenset({"fp32", "s8"})
    engine_suffix = ".plan"

    def __init__(self, *, tf32: bool = True) -> None:
        self._tf32 = bool(tf32)

    @property
    def device(self) -> str:
        """The GPU that is here, or an empty string."""
        return find_gpu().name

    def probe(self) -> Availability:
        """Say whether engines can be built, and whether a GPU is here to run them."""
        try:
            trt = self._load()
        except TargetUnavailable as exc:
            return Availability(False, False, str(exc), install_command(self.package))
        version, gpu = str(trt.__version__), find_gpu()
        if gpu.compute_capability is None:
            reason = f"{gpu.reason} Engines run only on an NVIDIA GPU."
            return Availability(self._builds_without_gpu(), False, reason, version=version)
        reason = self._refuse_gpu(trt, gpu.compute_capability)
        return Availability(self._builds_without_gpu() or not reason, not reason, reason, version=version)

    def build(self, artifact: OnnxArtifact, workdir: Path) -> Engine:
        """Build an engine in `workdir`.

        Raises:
            TargetUnavailable: If TensorRT is absent, or needs a GPU that is not here.
            ModelError: If the graph holds unsigned activations, or TensorRT cannot parse or build it.
            ArtifactError: If the model's file changed, or the engine cannot be written.
        """
        trt = self._load()
        self._check_artifact(artifact)
        availability = self.probe()
        if not availability.can_build:
            raise TargetUnavailable(f"Target {self.name} cannot build here: {availability.reason}")
        check_signed_activations(artifact.path)
        with _captured_log(self.package) as (log, records):
            plan, settings = self._build_plan(trt, log, records, artifact)
        path = self._engine_path(artifact, workdir, self.engine_suffix)
        write_bytes(path, plan)
        layers = parse_layers(record.text for record in records)
        details = {
            "runtime": f"{self.package} {trt.__version__}",
            "tf32": self._tf32,
            **settings,
            **describe_layers(layers),
            "coverage": describe_coverage(artifact.path, layers) if artifact.profile == "s8" else {},
            "warnings": sorted({record.text for record in records if record.severity == "WARNING"})[:20],
        }
        return self._engine(artifact, path, details)

    @contextlib.contextmanager
    def open(self, engine: Engine, *, threads: int = 1) -> Iterator[Session]:
        """Open an engine on the first GPU after checking its hash.

        Args:
            engine: An engine of this target, built for this GPU.
            threads: Has no meaning on a GPU and is only recorded.

        Raises:
            TargetUnavailable: If TensorRT or a GPU is absent, or the engine is for another GPU.
            ArtifactError: If the engine changed since it was built.
            ModelError: If it is another target's engine, or TensorRT cannot load it.
        """
        trt = self._load()
        self._check_engine(engine, threads)
        availability = self.probe()
        if not availability.can_run:
            raise TargetUnavailable(f"Target {self.name} cannot run here: {availability.reason}")
        self._check_gpu(engine)
        device = CudaDevice(CudaDriver(load_library()))
        try:
            with device.current():
                loaded, context = self._load_engine(trt, engine)
                properties = {
                    "runtime": f"{self.package} {trt.__version__}",
                    "gpu": find_gpu().name,
                    "threads": threads,
                    "tf32": engine.details.get("tf32"),
                    "cuda_graph": False,
                    "clock": "CUDA events around enqueue, input and output in device memory",
                }
                session = None
                try:
                    session = TrtSession(trt, device, context, engine, threads, properties)
                    yield session
                finally:
                    # TensorRT frees device memory itself, so both must go before the CUDA context does.
                    if session is not None:
                        session.close()
                    del context, loaded
        finally:
            device.close()

    def _builds_without_gpu(self) -> bool:
        return False

    def _refuse_gpu(self, trt: Any, compute_capability: tuple[int, int]) -> str:
        """Return why engines for this GPU cannot be built, or an empty string."""
        return ""

    def _network_flags(self, trt: Any) -> int:
        # Newer versions know strong typing only, and some no longer have a flag for it.
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def _configure(self, trt: Any, config: Any) -> dict[str, Any]:
        """Set what is particular to one of the two, and return it for the details."""
        return {}

    def _advice(self, settings: Mapping[str, Any]) -> str:
        """Return what else to say where a build with these settings failed."""
        return ""

    def _recover(self, trt: Any, builder: Any) -> None:
        """Undo what a failed build leaves behind in this process."""

    def _build_plan(
        self, trt: Any, log: Any, records: list[LogRecord], artifact: OnnxArtifact
    ) -> tuple[bytes, dict[str, Any]]:
        try:
            builder = trt.Builder(log)
            network = builder.create_network(self._network_flags(trt))
            parser = trt.OnnxParser(network, log)
            parsed = parser.parse(artifact.path.read_bytes())
        except (RuntimeError, TypeError) as exc:
            # pybind raises TypeError where TensorRT returns no object, as it does without a driver.
            raise TargetUnavailable(
                f"Target {self.name} does not start: {one_line(exc)}. {_errors(records)}"
            ) from exc
        if not parsed:
            messages = "; ".join(_parser_error(parser.get_error(i)) for i in range(parser.num_errors))
            raise ModelError(
                f"TensorRT cannot parse {artifact.path.name}: {messages or _errors(records)}. "
                f"Export it with profile='s8' and lower it for {self.name}."
            )
        check_warnings(records, artifact.path.name)
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if not self._tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        settings = self._configure(trt, config)
        serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            reason = _errors(records)
            self._recover(trt, builder)
            raise ModelError(f"TensorRT cannot build {artifact.path.name}: {reason}.{self._advice(settings)}")
        return bytes(serialized), settings

    def _check_gpu(self, engine: Engine) -> None:
        built_for, here = engine.details.get("compute_capability"), find_gpu().compute_capability
        if here is not None and built_for is not None and built_for != "SM{}{}".format(*here):
            raise TargetUnavailable(
                f"Engine {engine.path.name} was built for {built_for}; this GPU is SM{here[0]}{here[1]}. "
                "Build it on this machine."
            )

    def _load_engine(self, trt: Any, engine: Engine) -> tuple[Any, Any]:
        with _captured_log(self.package) as (log, records):
            runtime = trt.Runtime(log)
            loaded = runtime.deserialize_cuda_engine(engine.path.read_bytes())
            context = loaded.create_execution_context() if loaded is not None else None
            if context is None:
                raise ModelError(
                    f"TensorRT {trt.__version__} cannot open {engine.path.name}: {_errors(records)}. "
                    "An engine opens only with the version and GPU that it was built for: build it here."
                )
        # The runtime must outlive its engine.
        return (runtime, loaded), context


def check_signed_activations(path: Path) -> None:
    """Refuse a graph that quantizes to UINT8: TensorRT reads it as INT8 and saturates, silently.

    Raises:
        ModelError: If a QuantizeLinear's output is UINT8, also by leaving its zero point out.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as exc:
        # protobuf raises an exception of its own, from a package that is not ours to import.
        raise ModelError(f"{path.name} is not an ONNX model: {one_line(exc)}. Export it again.") from exc
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            types.update((node.output[0], a.t.data_type) for a in node.attribute if a.name == "value")
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        has_zero_point = len(node.input) > 2 and node.input[2]
        stated = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
        dtype = types.get(node.input[2]) if has_zero_point else stated or onnx.TensorProto.UINT8
        if dtype == onnx.TensorProto.UINT8:
            raise ModelError(
                f"{path.name} quantizes to UINT8 in node {node.name or node.output[0]!r}; TensorRT would read "
                "it as INT8 and every value above 127 would saturate. Export it with profile='s8'."
            )


def check_warnings(records: Sequence[LogRecord], model_name: str) -> None:
    """Refuse a build whose log says that UINT8 was read as something else.

    Raises:
        ModelError: If it does.
    """
    for record in records:
        if record.severity == "WARNING" and "UINT8" in record.text.upper():
            raise ModelError(
                f"TensorRT would give wrong numbers for {model_name}: {record.text} "
                "Export it with profile='s8'."
            )


def _errors(records: Sequence[LogRecord]) -> str:
    errors = [record.text for record in records if record.severity.endswith("ERROR")]
    return " ".join("; ".join(errors[-3:]).split()) or "it gave no reason"


def _parser_error(error: Any) -> str:
    # Parsers before TensorRT 10 do not know the node.
    node = error.node_name() if hasattr(error, "node_name") else ""
    return f"{error.node_operator()} {node!r}: {error.desc()}" if node else str(error.desc())


@contextlib.contextmanager
def _captured_log(package: str) -> Iterator[tuple[Any, list[LogRecord]]]:
    """Yield the process's TensorRT log and a list that gets its messages meanwhile.

    TensorRT keeps the first logger of a process and ignores later ones, so there is one for each package,
    and builds take turns with it.
    """
    with _BUILD_LOCK:
        log = _log_of(package)
        records: list[LogRecord] = []
        log.records = records
        try:
            yield log, records
        finally:
            log.records = None


@functools.cache
def _log_of(package: str) -> Any:
    trt = importlib.import_module(package)

    class _Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.records: list[LogRecord] | None = None

        def log(self, severity: Any, text: str) -> None:
            record = LogRecord(severity.name, text)
            if self.records is not None:
                self.records.append(record)
            elif record.severity in ("WARNING", "ERROR", "INTERNAL_ERROR"):
                logger.warning("%s: %s", package, text)

    return _Log()
