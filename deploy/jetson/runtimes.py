"""Three ways to run the model: TensorRT's Python bindings, trtexec, and ONNX Runtime.

Each builds one engine file, opens it, and has `infer` and `time`. The graph has explicit Q/DQ, so TensorRT 10
and 11 build the same strongly typed network; only how that is asked for differs.
"""

from __future__ import annotations

import importlib
import re
import time
from pathlib import Path

import numpy as np
from failures import OLDEST_TENSORRT, Lacking, RuntimeFailed
from trtexec import TrtExec

__all__ = ["RUNTIMES", "choose_runtime"]


def choose_runtime(name: str, options: dict):
    """Return a runtime that works here.

    Args:
        name: ``"tensorrt"``, ``"trtexec"``, ``"ort"``, or ``"auto"`` for the first that works.
        options: ``optimization_level`` (0 to 5, or None), ``tf32``, ``threads``.

    Raises:
        Lacking: If it, or none of them, works here; the message says what each lacks.
    """
    if name != "auto":
        return RUNTIMES[name](options)
    reasons = []
    for kind in RUNTIMES.values():
        try:
            return kind(options)
        except Lacking as exc:
            reasons.append(str(exc))
    raise Lacking("; ".join(reasons))


def _version(text: str) -> tuple:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _clock(run, plan: dict) -> list:
    clock = time.perf_counter_ns
    for _ in range(plan["warmup_runs"]):
        run()
    samples: list = []
    deadline = clock() + int(plan["min_seconds"] * 1e9)
    while True:
        start = clock()
        run()
        end = clock()
        samples.append(end - start)
        if len(samples) >= plan["min_runs"] or end >= deadline:
            return samples


class OnnxRuntime:
    """ONNX Runtime on the CPU: runs on any machine."""

    name = "ort"
    suffix = ".onnx"
    clock = "perf_counter_ns around run"

    def __init__(self, options: dict):
        try:
            self._ort = importlib.import_module("onnxruntime")
        except Exception as exc:
            raise Lacking(f"ONNX Runtime cannot be imported ({exc}): pip install onnxruntime") from exc
        self._options = options
        self.version = self._ort.__version__
        self.key = f"ort-{self.version}"
        self._session = None

    def build(self, model: Path, engine: Path, say) -> None:
        """Check that the model opens; the engine is the model itself."""
        self._open(model)
        engine.write_bytes(model.read_bytes())

    def open(self, engine: Path, inputs: dict, outputs: dict) -> None:
        """Open the engine."""
        self._session = self._open(engine)
        self._outputs = list(outputs)

    def infer(self, feeds: dict) -> dict:
        """Run once."""
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))
        except Exception as exc:
            raise RuntimeFailed(str(exc)) from exc

    def time(self, feeds: dict, plan: dict) -> list:
        """Return the nanoseconds of each counted run."""
        return _clock(lambda: self._session.run(self._outputs, feeds), plan)

    def layers(self, feeds: dict, runs: int) -> list:
        """Return nothing: the other runtimes' engines are what is profiled on a device."""
        return []

    def close(self) -> None:
        """Free the engine."""
        self._session = None

    def _open(self, path: Path):
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._options["threads"]
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            return self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as exc:
            raise RuntimeFailed(f"ONNX Runtime {self.version} cannot open {path.name}: {exc}") from exc


class TensorRt:
    """TensorRT 10 or 11 by its Python bindings."""

    name = "tensorrt"
    suffix = ".plan"
    clock = "CUDA events around enqueue, input and output in device memory, no CUDA graph"
    package = "tensorrt"

    def __init__(self, options: dict, trt=None, cuda=None):
        from gpu import Cuda, CudaError

        try:
            self._trt = importlib.import_module(self.package) if trt is None else trt
        except Exception as exc:
            raise Lacking(
                f"TensorRT's Python bindings cannot be imported ({exc}): sudo apt-get install python3-libnvinfer"
            ) from exc
        self.version = str(self._trt.__version__)
        if _version(self.version) < OLDEST_TENSORRT:
            raise Lacking(
                f"TensorRT {self.version} has no strongly typed networks; JetPack 6 brings TensorRT 10"
            )
        try:
            self._cuda = Cuda() if cuda is None else cuda
        except CudaError as exc:
            raise Lacking(f"no GPU: {exc}") from exc
        self._options = options
        level = options["optimization_level"]
        self.key = f"tensorrt-{self.version}-{self._cuda.compute_capability}-{level}-{options['tf32']}"
        self._messages: list = []
        self._log = self._make_log()
        self._context = None

    def build(self, model: Path, engine: Path, say) -> None:
        """Build the engine from the ONNX graph."""
        engine.write_bytes(self.build_plan(model, say))

    def build_plan(self, model: Path, say) -> bytes:
        """Return the serialized engine."""
        trt = self._trt
        del self._messages[:]
        try:
            builder = trt.Builder(self._log)
            # 10 has the flag; in 11 every network is strongly typed, and the flag may be gone.
            flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
            network = builder.create_network(0 if flag is None else 1 << int(flag))
            parser = trt.OnnxParser(network, self._log)
            parsed = parser.parse(model.read_bytes())
        except (RuntimeError, TypeError) as exc:
            raise RuntimeFailed(f"TensorRT does not start: {exc}. {self._errors()}") from exc
        if not parsed:
            errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
            raise RuntimeFailed(f"TensorRT cannot parse {model.name}: {errors or self._errors()}")
        for severity, text in self._messages:
            if severity == "WARNING" and "UINT8" in text.upper():
                raise RuntimeFailed(f"TensorRT would saturate unsigned activations: {text}")
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if self._options["optimization_level"] is not None:
            config.builder_optimization_level = self._options["optimization_level"]
        if not self._options["tf32"]:
            config.clear_flag(trt.BuilderFlag.TF32)
        self._configure(config)
        say("building: minutes on a small module")
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise RuntimeFailed(f"TensorRT cannot build {model.name}: {self._errors()}")
        return bytes(plan)

    def open(self, engine: Path, inputs: dict, outputs: dict) -> None:
        """Open the engine and take device memory."""
        runtime = self._trt.Runtime(self._log)
        loaded = runtime.deserialize_cuda_engine(engine.read_bytes())
        context = loaded.create_execution_context() if loaded is not None else None
        if context is None:
            raise RuntimeFailed(f"TensorRT {self.version} cannot open {engine.name}: {self._errors()}")
        # The runtime and the engine must outlive the context.
        self._kept = (runtime, loaded)
        self._context, self._addresses, self._outputs = context, {}, outputs
        for name, shape in {**inputs, **outputs}.items():
            if tuple(context.get_tensor_shape(name)) != tuple(shape):
                raise RuntimeFailed(f"tensor {name!r} of the engine is not {tuple(shape)}")
            self._addresses[name] = self._cuda.allocate(int(np.prod(shape)) * 4)
            context.set_tensor_address(name, self._addresses[name])

    def infer(self, feeds: dict) -> dict:
        """Run once."""
        self._upload(feeds)
        self._enqueue()
        self._cuda.synchronize()
        results = {}
        for name, shape in self._outputs.items():
            results[name] = np.empty(shape, np.float32)
            self._cuda.download(results[name], self._addresses[name])
        return results

    def time(self, feeds: dict, plan: dict) -> list:
        """Return the nanoseconds of each counted run on the GPU's clock."""
        self._upload(feeds)
        for _ in range(plan["warmup_runs"]):
            self._enqueue()
        self._cuda.synchronize()
        samples: list = []
        deadline = time.perf_counter() + plan["min_seconds"]
        while True:
            self._cuda.record(0)
            self._enqueue()
            self._cuda.record(1)
            samples.append(self._cuda.elapsed_ns())
            if len(samples) >= plan["min_runs"] or time.perf_counter() >= deadline:
                return samples

    def layers(self, feeds: dict, runs: int) -> list:
        """Return name and mean microseconds of each kernel, as TensorRT's profiler gives them."""
        totals: dict = {}

        class Profiler(self._trt.IProfiler):
            def __init__(self):
                super().__init__()

            def report_layer_time(self, layer_name, ms):
                totals[layer_name] = totals.get(layer_name, 0.0) + ms

        self._upload(feeds)
        self._enqueue()
        self._cuda.synchronize()
        profiler = Profiler()
        self._context.profiler = profiler
        for _ in range(runs):
            self._enqueue()
            self._cuda.synchronize()
        self._context.profiler = None
        return [{"name": str(name)[:500], "latency_us": total / runs * 1e3} for name, total in totals.items()]

    def close(self) -> None:
        """Free the engine, then the device memory."""
        self._context = self._kept = None
        self._cuda.close()

    def _configure(self, config) -> None:
        """Set what another kind of TensorRT needs."""

    def _upload(self, feeds: dict) -> None:
        for name, array in feeds.items():
            self._cuda.upload(self._addresses[name], np.ascontiguousarray(array, np.float32))

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise RuntimeFailed(f"TensorRT failed to run: {self._errors()}")

    def _errors(self) -> str:
        errors = [text for severity, text in self._messages if severity.endswith("ERROR")]
        return "; ".join(errors[-3:]) or "it gave no reason"

    def _make_log(self):
        trt, messages = self._trt, self._messages

        class Log(trt.ILogger):
            def __init__(self):
                trt.ILogger.__init__(self)

            def log(self, severity, text):
                messages.append((severity.name, text))
                del messages[:-2000]

        return Log()


RUNTIMES = {"tensorrt": TensorRt, "trtexec": TrtExec, "ort": OnnxRuntime}
