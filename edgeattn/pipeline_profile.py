"""Profile an engine: where its time goes, and how near that is to what the machine can do."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeattn.artifact import sha256_of_file
from edgeattn.errors import ArtifactError, EdgeAttnError, ModelError, RecipeError, TargetUnavailable
from edgeattn.export.artifacts import save_artifact
from edgeattn.measure.latency import measure_latency
from edgeattn.measure.peaks import Peaks, copy_bandwidth
from edgeattn.measure.profile import Profile, make_profile
from edgeattn.measure.work import read_work
from edgeattn.onnx_graph import Graph
from edgeattn.progress import Progress, SilentProgress
from edgeattn.targets import Engine, LayerTime, Target, TimingPlan, get_target, load_engine
from edgeattn.targets.engine_files import engine_manifest_path
from edgeattn.targets.executed import executed_graph

__all__ = ["EngineProfile", "measure_peaks", "profile_engine"]

# Their engines run on the host's cores and memory, which is where the peaks are measured.
_ON_THIS_CPU = frozenset({"ort-cpu", "openvino-cpu"})
_PEAK_CHANNELS, _PEAK_SIZE = 384, 28
_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class EngineProfile:
    """What `profile_engine` found.

    Attributes:
        engine: The engine's file name.
        target: That built it.
        precision: ``"int8"`` or ``"fp32"``.
        runtime: With its version.
        threads: Of one inference.
        runs: Profiled inferences; a time is the median of the means of five rounds of them.
        p50_ms: Of a whole inference, without the profiler.
        attentions: Paths of the attention modules.
        profile: The times.
        no_roofline: Why there is no roofline, or an empty string.
    """

    engine: str
    target: str
    precision: str
    runtime: str
    threads: int
    runs: int
    p50_ms: float
    attentions: tuple[str, ...]
    profile: Profile
    no_roofline: str = ""

    @property
    def roofline(self) -> float | None:
        """The roofline's time of the network, by that of a whole inference without the profiler."""
        attainable = self.profile.total.attainable_us
        return attainable / (1e3 * self.p50_ms) if attainable is not None and self.p50_ms > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "profile"}
        return {**own, "roofline": self.roofline, **self.profile.to_json()}


def profile_engine(
    path: Path, *, threads: int = 1, runs: int = 50, progress: Progress | None = None
) -> EngineProfile:
    """Time every layer of an engine, attribute the times to modules, and compare them with the roofline.

    Args:
        path: The engine, with its manifest and the lowered ONNX file that it was built from; a build
            leaves that beside the engine or in ``lowered``.
        threads: Of one inference.
        runs: Inferences to profile.
        progress: Hears how far it is.

    Raises:
        ArtifactError: If the manifest or the lowered file is missing, or something changed.
        TargetUnavailable: If the engine's target cannot run here.
        ModelError: If the runtime does not report layers.
    """
    progress = progress or SilentProgress()
    engine = _load(path)
    target = get_target(engine.target)
    here = target.probe()
    if not here.can_run:
        raise TargetUnavailable(
            f"{path.name} was built by {engine.target}, which cannot run here, so that no layer can be "
            f"timed: {here.reason} {here.install}".rstrip()
        )
    work = read_work(Graph(onnx.load(str(_lowered_file(engine)))))
    spec = engine.inputs[0]
    image = np.random.default_rng(0).standard_normal(spec.shape).astype(np.float32)
    feeds = {spec.name: image}
    progress.update("layers", 0, _ROUNDS + 1)
    with target.open(engine, threads=threads) as session:
        # Half a second is enough for a median, and it warms up what the profiler then times.
        plan = TimingPlan(warmup_runs=10, min_runs=512, min_seconds=0.5, threads=threads)
        latency = measure_latency(session, feeds, plan)
        rounds = [runs // _ROUNDS + (index < runs % _ROUNDS) for index in range(min(_ROUNDS, runs))]
        tries = []
        for done, count in enumerate(rounds, start=1):
            progress.update("layers", done, len(rounds) + 1)
            tries.append(session.layer_times(feeds, runs=count))
        times = _median_times(tries)
        executed = executed_graph(session)
    progress.update("layers", len(rounds) + 1, len(rounds) + 1)
    if not times:
        raise ModelError(
            f"{engine.target} does not report the times of layers. Time the whole with `edgeattn bench`."
        )
    peaks, why = None, f"peaks are measured for {' and '.join(sorted(_ON_THIS_CPU))} only"
    if engine.target in _ON_THIS_CPU:
        float_macs = any(
            layer.macs and layer.dtype not in ("int8", "uint8")
            for layer in make_profile(times, executed, work, None, engine.precision).layers
        )
        precisions = [engine.precision, *(["fp32"] if float_macs and engine.precision == "int8" else [])]
        peaks, why = measure_peaks(target, precisions, threads, progress), ""
    return EngineProfile(
        engine=engine.path.name,
        target=engine.target,
        precision=engine.precision,
        runtime=str(engine.details.get("runtime", "")),
        threads=threads,
        runs=runs,
        p50_ms=latency.p50_ms,
        attentions=tuple(sorted(work.attentions, key=_natural)),
        profile=make_profile(times, executed, work, peaks, engine.precision),
        no_roofline=why,
    )


def measure_peaks(
    target: Target, precisions: list[str], threads: int = 1, progress: Progress | None = None
) -> Peaks:
    """Measure what this machine can do at most, in the target's own runtime.

    Multiplications a second are those of the faster of two large convolutions, 1x1 and 3x3; bytes a
    second are those of a large copy.

    Args:
        target: A target that runs on this machine's CPU.
        precisions: ``"int8"`` or ``"fp32"``, or both.
        threads: Of one inference, and of the copy.
        progress: Hears how far it is.
    """
    progress = progress or SilentProgress()
    steps = len(precisions) + 1
    rates = {}
    for done, precision in enumerate(precisions):
        progress.update("peaks", done, steps)
        rates["int8" if precision == "int8" else "float"] = _fastest_convolution(target, precision, threads)
    progress.update("peaks", steps - 1, steps)
    bandwidth = copy_bandwidth(threads)
    progress.update("peaks", steps, steps)
    return Peaks(threads, rates, bandwidth)


def _load(path: Path) -> Engine:
    if not path.is_file():
        raise RecipeError(f"{path} is not a file; expected an engine, such as runs/NAME/ort-cpu/int8/*.onnx.")
    manifest = path if path.name.endswith(".json") else engine_manifest_path(path)
    if not manifest.is_file():
        raise ArtifactError(
            f"{path} has no manifest {manifest.name} beside it, so it is no engine of a target. "
            "A run writes both, and so does `edgeattn quantize`."
        )
    return load_engine(path)


def _lowered_file(engine: Engine) -> Path:
    """Find the file that an engine was built from, by its hash."""
    wanted = engine.details.get("source_sha256")
    folder = engine.path.parent
    for found in (engine.path, *sorted(folder.glob("*.onnx")), *sorted(folder.glob("lowered/*.onnx"))):
        if found.suffix == ".onnx" and sha256_of_file(found) == wanted:
            return found
    raise ArtifactError(
        f"The lowered ONNX file that {engine.path.name} was built from is neither beside it nor in "
        f"{folder / 'lowered'}; modules and multiplications are read from it. Build the engine again."
    )


def _median_times(tries: list[Sequence[LayerTime]]) -> list[LayerTime]:
    """Return the median of several profiles: another program that ran meanwhile spoils one, not all."""
    found: dict[str, list[float]] = {}
    first: dict[str, LayerTime] = {}
    for times in tries:
        for time in times:
            first.setdefault(time.name, time)
            found.setdefault(time.name, []).append(time.latency_us)
    # One that is missing was too short for the profiler's clock.
    missing = {name: [0.0] * (len(tries) - len(values)) for name, values in found.items()}
    return [
        dataclasses.replace(time, latency_us=float(np.median(found[name] + missing[name])))
        for name, time in first.items()
    ]


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in text.split("/")]


# -------------------------------------------------------------------------------------- peaks


def _fastest_convolution(target: Target, precision: str, threads: int) -> float:
    """Return multiplications a second of the faster convolution, in the best of three tries."""
    model = _peak_model(precision == "int8")
    with tempfile.TemporaryDirectory(prefix="edgeattn-peaks-") as name:
        folder = Path(name)
        profile = target.profile if precision == "int8" else "fp32"
        artifact = save_artifact(model, folder / "peaks.onnx", profile)
        try:
            engine = target.build(target.lower(artifact, folder), folder)
            work = read_work(Graph(onnx.load(str(_lowered_file(engine)))))
            image = np.random.default_rng(0).standard_normal(engine.inputs[0].shape).astype(np.float32)
            rate = 0.0
            with target.open(engine, threads=threads) as session:
                for _ in range(3):
                    times = session.layer_times({"input": image}, runs=10)
                    found = make_profile(times, executed_graph(session), work)
                    timed = [layer for layer in found.layers if layer.latency_us > 0]
                    rate = max([rate, *(1e6 * layer.macs / layer.latency_us for layer in timed)])
        except EdgeAttnError as exc:
            raise ModelError(f"The peak of {target.name} cannot be measured: {exc}") from exc
    return rate


def _peak_model(quantized: bool) -> ModelProto:
    """Build two large convolutions, one behind the other; unsigned activations suit every CPU."""
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Any] = {}

    def pair(tensor: str, name: str) -> str:
        if not quantized:
            return tensor
        constants[f"{name}.scale"], constants[f"{name}.zero"] = np.float32(0.05), np.uint8(128)
        parameters = [f"{name}.scale", f"{name}.zero"]
        nodes.append(helper.make_node("QuantizeLinear", [tensor, *parameters], [f"{name}.quantized"]))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}.quantized", *parameters], [f"{name}.dequantized"])
        )
        return f"{name}.dequantized"

    def convolve(tensor: str, name: str, kernel: int) -> str:
        shape = (_PEAK_CHANNELS, _PEAK_CHANNELS, kernel, kernel)
        weight = f"{name}.weight"
        if quantized:
            constants[f"{weight}.quantized"] = random.integers(-127, 128, shape).astype(np.int8)
            constants[f"{weight}.scale"] = np.full(_PEAK_CHANNELS, 0.01 / kernel, np.float32)
            constants[f"{weight}.zero"] = np.zeros(_PEAK_CHANNELS, np.int8)
            parts = [f"{weight}.{part}" for part in ("quantized", "scale", "zero")]
            nodes.append(helper.make_node("DequantizeLinear", parts, [weight], axis=0))
        else:
            constants[weight] = (0.01 * random.standard_normal(shape)).astype(np.float32)
        constants[f"{name}.bias"] = np.zeros(_PEAK_CHANNELS, np.float32)
        nodes.append(
            helper.make_node(
                "Conv",
                [tensor, weight, f"{name}.bias"],
                [name],
                name,
                kernel_shape=[kernel, kernel],
                pads=[kernel // 2] * 4,
            )
        )
        return pair(name, name)

    shape = (1, _PEAK_CHANNELS, _PEAK_SIZE, _PEAK_SIZE)
    output = convolve(convolve(pair("input", "input"), "peak/pointwise/0", 1), "peak/square/0", 3)
    graph = helper.make_graph(
        [*nodes, helper.make_node("GlobalAveragePool", [output], ["output"], "output")],
        "peaks",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, (1, _PEAK_CHANNELS, 1, 1))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model
