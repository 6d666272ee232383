"""One row of the catalogue: one mechanism, measured on every target."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgeattn.attention import attentions
from edgeattn.errors import EdgeAttnError
from edgeattn.lower.preferences import preferred_forms
from edgeattn.measure import compare_outputs, run_session
from edgeattn.pipeline_catalogue_bench import (
    Bench,
    Quantized,
    build,
    networks_with_and_without,
    quantize,
    trained_like,
)
from edgeattn.targets import Engine, LayerTime, Target, get_target, target_names
from edgeattn.targets._common import one_line

__all__ = ["measure_row", "measure_tax"]

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
_ANOTHER_ANSWER_DB = 6.0
"""By which an engine may be farther from float than its graph is, computed exactly."""
_INTEGERS = frozenset(["int8", "uint8", "i8", "u8"])


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
        "edge_form": _form_for(name, settings.targets[0]),
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
        graphs: dict[str | None, Quantized] = {}
        try:
            for form in dict.fromkeys(_form_for(name, target) for target in settings.targets):
                graphs[form] = quantize(network, shape, bench, form=form)
        except (EdgeAttnError, RuntimeError, ValueError, KeyError) as exc:
            row |= {"sqnr_db": {"u8": None, "s8": None}, "gate_policy": None}
            reason = f"cannot be exported or quantized: {type(exc).__name__}: {one_line(exc)}"
            row["targets"] = {target: _cannot(reason) for target in settings.targets}
            return row
        first = graphs[row["edge_form"]]
        row |= {"sqnr_db": first.sqnr_db, "gate_policy": first.policy, "targets": {}}
        for target in settings.targets:
            form = _form_for(name, target)
            row["targets"][target] = _measure_target(target, graphs[form], shape, bench) | {"edge_form": form}
    return row


def _form_for(name: str, target: str) -> str | None:
    """Return the exact form that a target runs fastest; None where a mechanism has none."""
    return preferred_forms(target).get(name)


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
        for form in dict.fromkeys(_form_for(name, target) for target in timed):
            networks, reason = networks_with_and_without(attentions.get(name), policy, form, bench)
            for target in timed:
                if _form_for(name, target) != form:
                    continue
                found[target] = (
                    _no_tax(reason) if networks is None else _tax(get_target(target), *networks, bench)
                )
    return found


def _cannot(reason: str, status: str = "failed") -> dict[str, Any]:
    return {"status": status, "verdict": f"cannot: {reason}", "reason": reason}


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
        return _cannot(f"{one_line(exc)} ({name} {here.version})")
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
        return result | _cannot(f"{one_line(exc)} ({name} {here.version})")
    result["status"] = "ok"
    result["verdict"] = _verdict(result, quantized.policy, quantized.sqnr_db[target.profile])
    return result


def _verdict(result: Mapping[str, Any], policy: str, of_graph_db: float) -> str:
    fallbacks = result["fallbacks"]
    if result["sqnr_db"] < of_graph_db - _ANOTHER_ANSWER_DB:
        return f"computes other numbers: {result['sqnr_db']:.1f} dB where its graph has {of_graph_db:.1f}"
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
        return _no_tax(one_line(exc))
    ratio = comparison.ratios["with"]
    return {
        "tax": ratio.ratio - 1.0,
        "tax_interval": [end - 1.0 for end in ratio.interval],
        "network_int8_ms": comparison.latencies["with"].p50_ms,
        "bare_int8_ms": comparison.latencies["bare"].p50_ms,
        "places": network.places,
        "network_engine_bytes": engine.size_bytes,
    }
