"""One row of the catalogue: one mechanism, measured on every target."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.attention import attentions
from edgeattn.errors import EdgeAttnError
from edgeattn.measure import compare_latency, compare_outputs, run_session
from edgeattn.targets import Engine, Feeds, LayerTime, Session, Target, TimingPlan, get_target, target_names

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from edgeattn.attention import AttentionInfo
    from edgeattn.measure.latency import LatencyComparison
    from edgeattn.pipeline_catalogue import CatalogueSettings
    from edgeattn.quant.plan import Profile

__all__ = ["Bench", "Quantized", "measure_row", "measure_tax", "quantize", "trained_like"]

_GATE_BOUND_DB = 25.0
_SLOW_SECONDS = 0.2
_POLICIES = ("int8", "float")
_CLASSES = 10
_CRASHES = {
    (
        "scconv",
        "openvino-cpu",
    ): "OpenVINO 2026.4.1 ends the process (segmentation fault) while it compiles this network",
}
"""Networks that cannot be tried, because no error comes back."""
# Layers that move or convert data: no operator falls back there.
_NO_COMPUTATION = frozenset(
    [
        "QuantizeLinear",
        "DequantizeLinear",
        "Reorder",
        "Convert",
        "Input",
        "Output",
        "Const",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Split",
        "Slice",
        "Concat",
        "Concatenation",
        "StridedSlice",
        "FakeQuantize",
        "ReorderInput",
        "ReorderOutput",
        "Cast",
        "VariadicSplit",
        "Broadcast",
        "Tile",
    ]
)
_INTEGERS = frozenset(["int8", "uint8", "i8", "u8"])


@dataclasses.dataclass
class Quantized:
    """A network's float graph, and its INT8 graph in each profile."""

    floating: ModelProto
    graphs: dict[str, ModelProto]
    sqnr_db: dict[str, float]
    policy: str


class Bench:
    """What rows share: targets, inputs, and the bare network's engines.

    Args:
        settings: Of the catalogue.
    """

    def __init__(self, settings: CatalogueSettings) -> None:
        self.settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="edgeattn-catalogue-"))
        self._bare: dict[str, Session] = {}
        self._bare_graphs: Quantized | None = None
        self._open = contextlib.ExitStack()

    def close(self) -> None:
        """Close the sessions and remove the files."""
        self._open.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def inputs(self, shape: Sequence[int], seed: int) -> list[NDArray[np.float32]]:
        """Return random inputs of a shape with batch 1."""
        from edgeattn.models.example import draw_maps

        drawn = draw_maps((self.settings.images, *shape[1:]), seed=self.settings.seed + seed).numpy()
        return list(drawn[:, None])

    def compare(self, sessions: Mapping[str, Session], feeds: Feeds) -> LatencyComparison:
        """Time engines in turns: as long as the settings say, less where one inference takes long."""
        settings = self.settings
        plan, rounds = TimingPlan(16, settings.timed_runs, 3.0, settings.threads), settings.rounds
        started = time.perf_counter()
        for session in sessions.values():
            session.infer(feeds)
        if time.perf_counter() - started > _SLOW_SECONDS:
            # Attention over thousands of positions: its time is anything but noise.
            plan, rounds = dataclasses.replace(plan, warmup_runs=1), min(rounds, 4)
        return compare_latency(sessions, feeds, plan, rounds=rounds)

    def bare_session(self, target: Target) -> Session:
        """Return an open engine of the network without attention, the same for all mechanisms."""
        if target.name not in self._bare:
            if self._bare_graphs is None:
                shape = (1, 3, self.settings.network_size, self.settings.network_size)
                self._bare_graphs = quantize(_small_network(self, None), shape, self, timed_with="int8")
            engine = build(self, target, self._bare_graphs, "bare")
            session = self._open.enter_context(target.open(engine, threads=self.settings.threads))
            self._bare[target.name] = session
        return self._bare[target.name]


def measure_row(name: str, bench: Bench) -> dict[str, Any]:
    """Measure one mechanism; what goes wrong becomes part of the row."""
    import torch

    from edgeattn.models import count_macs, count_parameters
    from edgeattn.models.example import make_example

    info, settings = attentions.get(name), bench.settings
    row: dict[str, Any] = {
        "name": name,
        "title": info.title,
        "paper": info.paper,
        "family": info.family,
        "contract": info.contract,
        "placement": info.placement if info.contract == "map" else None,
        "gates": info.gates,
        "edge_form": info.default_form or None,
        "no_edge_form_reason": info.no_edge_form_reason or None,
    }
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = make_example(name, settings.channels, settings.size, seed=settings.seed)
        shape = example.alone_shape or example.input_shape
        network = trained_like(example.alone or example.network, shape)
        # The mechanism with single convolutions around it, or all of the network that stands for it.
        row["measured"] = "module" if (example.bare or example.alone) is not None else "network"
        row["parameters"] = count_parameters(example.module)
        row["network_parameters"] = count_parameters(network)
        row["input_shape"] = list(shape)
        row["macs"] = count_macs(network, shape)
        if example.bare is not None:
            row["macs"] -= count_macs(example.bare, example.input_shape)
        try:
            quantized = quantize(network, shape, bench)
        except (EdgeAttnError, RuntimeError, ValueError, KeyError) as exc:
            row |= {"sqnr_db": {"u8": None, "s8": None}, "gate_policy": None}
            reason = f"cannot be exported or quantized: {type(exc).__name__}: {_one_line(exc)}"
            row["targets"] = {target: _cannot(reason) for target in settings.targets}
            return row
        row |= {"sqnr_db": quantized.sqnr_db, "gate_policy": quantized.policy}
        row["targets"] = {
            target: _measure_target(target, quantized, shape, bench) for target in settings.targets
        }
    return row


def measure_tax(name: str, targets: Sequence[str], policy: str, bench: Bench) -> dict[str, dict[str, Any]]:
    """Return, for each target, what a mechanism adds to a network's time, or why that is not known.

    Args:
        name: The mechanism.
        targets: Those that run it.
        policy: What of its gates is INT8.
        bench: Settings.
    """
    import torch

    timed = [target for target in targets if target not in _UNTIMED]
    found = {target: _no_tax("its time says nothing about a device") for target in targets}
    if not timed:
        return found
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        networks, reason = _networks_with_and_without(attentions.get(name), policy, bench)
        for target in timed:
            if networks is None:
                found[target] = _no_tax(reason)
            elif (name, target) in _CRASHES:
                found[target] = _no_tax(_CRASHES[name, target])
            else:
                found[target] = _tax(get_target(target), *networks, bench)
    return found


def _cannot(reason: str, status: str = "failed") -> dict[str, Any]:
    return {"status": status, "verdict": f"cannot: {reason}", "reason": reason}


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:400]


# ------------------------------------------------------------------------------------- networks


def trained_like(network: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Give parameters that start at zero a value, and batch norms statistics of noise."""
    import torch
    from torch import nn

    from edgeattn.models.example import draw_maps, wake

    wake(network)
    norms = [m for m in network.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.train()(draw_maps((16, *shape[1:]), seed=1))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def _small_network(bench: Bench, info: AttentionInfo | None) -> nn.Module:
    import torch

    from edgeattn.models import create_model, insert_attention, replace_convolutions

    settings = bench.settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = create_model("mobilenet_v2", num_classes=_CLASSES, width=settings.network_width)
        if info is not None and info.contract == "map":
            model = insert_attention(model, info.name, identity=False)
        elif info is not None:
            model = replace_convolutions(model, info.name)
    return trained_like(model, (1, 3, settings.network_size, settings.network_size))


def _networks_with_and_without(
    info: AttentionInfo, policy: str, bench: Bench
) -> tuple[tuple[Quantized, Quantized | None] | None, str]:
    """Return a network with the mechanism and one without (None: the common one), or why there is none."""
    from edgeattn.models.example import make_example

    size = bench.settings.network_size
    try:
        if info.contract in ("map", "convolution"):
            network = _small_network(bench, info)
            return (quantize(network, (1, 3, size, size), bench, timed_with=policy), None), ""
        example = make_example(info.name, seed=bench.settings.seed)
        if example.bare is None:
            return None, f"there is no network without it to compare with: it is a {info.contract}"
        both = [
            quantize(
                trained_like(network, example.input_shape), example.input_shape, bench, timed_with=policy
            )
            for network in (example.network, example.bare)
        ]
        return (both[0], both[1]), ""
    except (EdgeAttnError, RuntimeError, ValueError, KeyError) as exc:
        return None, _one_line(exc)


def quantize(
    network: nn.Module, shape: Sequence[int], bench: Bench, *, timed_with: str | None = None
) -> Quantized:
    """Export and quantize a network in both profiles.

    The gate stays in float only where that is what brings it above the bound.

    Args:
        network: In float form and evaluation mode.
        shape: Of its input.
        bench: Settings.
        timed_with: A gate policy. The result is only for timing on CPUs: calibrated on two inputs, without room
            for sums of 16 bits, in u8 alone. None: both policies are tried where the first is not enough.
    """
    from edgeattn.export.float_onnx import export_float
    from edgeattn.export.qdq import emit_qdq
    from edgeattn.models import to_edge_form
    from edgeattn.onnx_graph import Graph
    from edgeattn.quant.config import PtqConfig
    from edgeattn.quant.gates import gate_regions
    from edgeattn.quant.placement import place_quantizers
    from edgeattn.quant.ptq import make_plan
    from edgeattn.quant.simulation import PlanMeter

    edge = to_edge_form(network, shape[2], shape[3], materialize=True)
    floating = export_float(edge, shape).model
    quick = timed_with is not None
    images = bench.inputs(shape, 1)[: 2 if quick else None]
    found: Quantized | None = None
    for policy in _POLICIES if timed_with is None else (timed_with,):
        regions = gate_regions(edge, policy)  # type: ignore[arg-type]  # the names are those of the type
        config = PtqConfig(
            nncf=False,
            equalization=False,
            importance=False,
            tuning_steps=0,
            range_estimator="minmax" if quick else "mse",
            headroom="none" if quick else "measured",
        )
        plan = make_plan(floating, images, config, gates=regions)
        profiles: tuple[Profile, ...] = ("u8",) if quick else ("u8", "s8")
        graphs: dict[str, ModelProto] = {profile: emit_qdq(floating, plan, profile) for profile in profiles}
        sqnr = {"u8": 0.0, "s8": 0.0}
        if not quick:
            # On inputs that the ranges never saw.
            meter = PlanMeter(Graph(floating), place_quantizers(floating, regions), bench.inputs(shape, 2))
            step = meter.step("held out", plan, 0.0)
            sqnr = {"u8": step.sqnr_db_u8, "s8": step.sqnr_db_s8}
        if found is None or sqnr["u8"] > found.sqnr_db["u8"]:
            found = Quantized(floating, graphs, sqnr, policy)
        if found.sqnr_db["u8"] >= _GATE_BOUND_DB or not regions:
            break
    if found is None:
        raise RuntimeError("there is no gate policy")
    return found


# ------------------------------------------------------------------------------------- targets


def build(bench: Bench, target: Target, quantized: Quantized, name: str, *, floating: bool = False) -> Engine:
    """Lower and build one graph for a target."""
    from edgeattn.export.artifacts import save_artifact

    profile = "fp32" if floating else target.profile
    model = quantized.floating if floating else quantized.graphs[target.profile]
    folder = bench.folder / target.name / f"{name}-{profile}"
    folder.mkdir(parents=True, exist_ok=True)
    artifact = save_artifact(model, folder / f"{name}.{profile}.onnx", profile)
    return target.build(target.lower(artifact, folder / "lowered"), folder / "engine")


def _measure_target(name: str, quantized: Quantized, shape: Sequence[int], bench: Bench) -> dict[str, Any]:
    if name not in target_names():
        return _cannot(f"there is no target {name} in this version", "unavailable")
    target = get_target(name)
    here = target.probe()
    if not here.can_build:
        return _cannot(here.reason, "unavailable")
    try:
        engine = build(bench, target, quantized, "module")
    except EdgeAttnError as exc:
        return _cannot(f"{_one_line(exc)} ({name} {here.version})")
    result: dict[str, Any] = {"engine_bytes": engine.size_bytes, "runtime": here.version}
    if not here.can_run:
        return result | {
            "status": "built",
            "reason": here.reason,
            "verdict": "builds; no device to run it on",
        }
    try:
        result |= _run(target, engine, quantized, shape, bench)
    except EdgeAttnError as exc:
        return result | _cannot(f"{_one_line(exc)} ({name} {here.version})")
    result["status"] = "ok"
    result["verdict"] = _verdict(result, quantized.policy)
    return result


def _verdict(result: Mapping[str, Any], policy: str) -> str:
    fallbacks = result["fallbacks"]
    if policy == "float":
        return "runs with float gate"
    return f"runs in INT8, in float: {', '.join(fallbacks)}" if fallbacks else "runs in INT8"


@contextlib.contextmanager
def _sessions(target: Target, engines: Mapping[str, Engine], threads: int) -> Iterator[dict[str, Any]]:
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(target.open(engine, threads=threads))
            for name, engine in engines.items()
        }


_UNTIMED = frozenset({"reference"})
"""Targets whose time says nothing about a device."""


def _run(
    target: Target, engine: Engine, quantized: Quantized, shape: Sequence[int], bench: Bench
) -> dict[str, Any]:
    """Return latencies, what falls back, and the SQNR of a module on a target."""
    floating = build(bench, target, quantized, "module", floating=True)
    held_out = np.concatenate(bench.inputs(shape, 2))
    feed, result_name = engine.inputs[0].name, engine.outputs[0].name
    feeds = {feed: held_out[:1]}
    engines = {"fp32": floating, "int8": engine}
    with _sessions(target, engines, bench.settings.threads) as sessions:
        logits = {
            name: run_session(session, held_out, feed, result_name).reshape(len(held_out), -1)
            for name, session in sessions.items()
        }
        sqnr = compare_outputs(logits["fp32"], logits["int8"]).to_json()["sqnr_db"]
        if target.name in _UNTIMED:
            # In float64 it keeps what leads to a QuantizeLinear exact; in float32 it computes what has no integers.
            layers = [
                layer for layer in sessions["int8"].layer_times(feeds, runs=1) if layer.dtype == "float32"
            ]
            return {"sqnr_db": sqnr, "fallbacks": _fallbacks(layers, result_name)}
        comparison = bench.compare(sessions, feeds)
        layers = sessions["int8"].layer_times(feeds, runs=10)
    ratio = comparison.ratios["int8"]
    return {
        "sqnr_db": sqnr,
        "int8_ms": comparison.latencies["int8"].p50_ms,
        "fp32_ms": comparison.latencies["fp32"].p50_ms,
        "speedup": ratio.speedup,
        "speedup_interval": list(ratio.speedup_interval),
        "fallbacks": _fallbacks(layers, result_name),
        "integer_layers": sum(layer.dtype in _INTEGERS for layer in layers),
    }


def _fallbacks(layers: Sequence[LayerTime], result_name: str) -> list[str]:
    """Return the operators that computed in float."""
    return sorted(
        {
            layer.kind
            for layer in layers
            if layer.dtype not in _INTEGERS
            # Its first input is a scale.
            and layer.kind != "QLinearConcat"
            and layer.kind not in _NO_COMPUTATION
            # What writes the graph's output writes floats by definition.
            and not layer.name.startswith(result_name)
            and layer.latency_us > 0
        }
    )


def _no_tax(reason: str) -> dict[str, Any]:
    return {"tax": None, "tax_interval": None, "no_tax_reason": reason}


def _tax(target: Target, network: Quantized, without: Quantized | None, bench: Bench) -> dict[str, Any]:
    """Return what the mechanism adds to the INT8 network's time, timed in turns with the bare one."""
    threads = bench.settings.threads
    try:
        engine = build(bench, target, network, "network")
        with contextlib.ExitStack() as stack:
            if without is None:
                bare = bench.bare_session(target)
            else:
                other = build(bench, target, without, "without")
                bare = stack.enter_context(target.open(other, threads=threads))
            session = stack.enter_context(target.open(engine, threads=threads))
            image = bench.inputs(list(engine.inputs[0].shape), 3)[0]
            comparison = bench.compare({"bare": bare, "with": session}, {engine.inputs[0].name: image})
    except EdgeAttnError as exc:
        return _no_tax(_one_line(exc))
    ratio = comparison.ratios["with"]
    return {
        "tax": ratio.ratio - 1.0,
        "tax_interval": [end - 1.0 for end in ratio.interval],
        "network_int8_ms": comparison.latencies["with"].p50_ms,
        "bare_int8_ms": comparison.latencies["bare"].p50_ms,
        "network_engine_bytes": engine.size_bytes,
    }
