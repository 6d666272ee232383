"""What the reference would compute if something were wrong: graphs and options for every cause it can play."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from edgeattn.lower.patterns import clip_to_grid, dequantize_of, dequantized_constant, remove_pair
from edgeattn.measure.layers import Finding, diagnose
from edgeattn.onnx_graph import Graph, attribute, is_clip
from edgeattn.targets.reference import make_program

if TYPE_CHECKING:
    from edgeattn.targets._reference.program import Program

__all__ = ["find_causes", "inner_pairs", "quantized_tensors", "without_pairs"]

Array = NDArray[Any]
Runs = Sequence[tuple[dict[str, Array], dict[str, Array]]]
"""Of each image: the graph's inputs, and the integers given to every layer."""


def quantized_tensors(graph: Graph) -> dict[str, NodeProto]:
    """Return every QuantizeLinear by the name of the integers that it writes, in order."""
    return {node.output[0]: node for node in graph.nodes if node.op_type == "QuantizeLinear"}


def inner_pairs(graph: Graph) -> set[str]:
    """Return names of tensors whose pair lies inside what runtimes compute in one kernel."""
    found = set()
    for name, quantize in quantized_tensors(graph).items():
        before = graph.producer.get(quantize.input[0])
        pair = graph.only_consumer(name)
        user = graph.only_consumer(pair.output[0]) if pair is not None else None
        if before is not None and before.op_type == "Conv" and user is not None and user.op_type == "Add":
            found.add(name)
    return found


def without_pairs(model: ModelProto, names: Sequence[str], *, keeps_clips: bool = False) -> ModelProto:
    """Return the graph without the Q/DQ pairs of some tensors.

    Args:
        model: With Q/DQ.
        names: Integers that QuantizeLinears write.
        keeps_clips: Put back the network's clips that pairs stand for, as lowering does.
    """
    if not names:
        return model
    graph = Graph(model)
    for name in names:
        quantize = quantized_tensors(graph).get(name)
        if quantize is None:
            continue
        if keeps_clips and is_clip(quantize):
            clip_to_grid(graph, quantize)
        remove_pair(graph, quantize)
    graph.remove_unused()
    graph.sort()
    return graph.to_model()


def find_causes(
    truth: ModelProto,
    executed: Graph,
    suspects: Sequence[str],
    parameters: Mapping[str, tuple[Array, Array]],
    kept: Mapping[str, Sequence[tuple[Array, Array]]],
    runs: Sequence[tuple[dict[str, Array], dict[str, Array]]],
    base: Mapping[str, Any],
) -> dict[str, Finding]:
    """Diagnose the layers that differ by more than plain rounding."""
    if not suspects:
        return {}
    predicted: dict[str, dict[tuple[str, str], Array]] = {name: {} for name in suspects}
    for cause, text, model, options in _hypotheses(truth, executed):
        program = make_program(model, **{**base, **options})
        for name, values in _predict(program, suspects, runs).items():
            predicted[name][cause, text] = values
    up = _predict(make_program(truth, **{**base, "rounding": "tie-up"}), suspects, runs)
    down = _predict(make_program(truth, **{**base, "rounding": "tie-down"}), suspects, runs)
    away = _predict(make_program(truth, **{**base, "rounding": "half-away"}), suspects, runs)
    found = {}
    for name in suspects:
        expected = np.concatenate([pair[0].ravel() for pair in kept[name]])
        got = np.concatenate([pair[1].ravel() for pair in kept[name]])
        zero = parameters[name][1]
        limits = np.iinfo(zero.dtype)
        alternatives = {w: v for w, v in predicted[name].items() if not np.array_equal(v, expected)}
        span = int(limits.min), int(limits.max)
        ties = up[name] != down[name]
        found[name] = diagnose(expected, got, int(zero), span, alternatives, ties, away[name])
    return found


def _predict(
    program: Program, names: Sequence[str], runs: Sequence[tuple[dict[str, Array], dict[str, Array]]]
) -> dict[str, Array]:
    """Return what a program makes of the given integers: all images of each tensor that it has, as one row."""
    known = set(program.quantized_names)
    wanted = [name for name in names if name in known]
    found: dict[str, list[Array]] = {name: [] for name in wanted}
    for feeds, given in runs:
        fitting = {n: _in_type(value, program.parameters(n)[1]) for n, value in given.items() if n in known}
        for name, value in program.run(feeds, wanted, fitting).items():
            if name in found:
                found[name].append(value.ravel().astype(np.int64))
    return {name: np.concatenate(values) for name, values in found.items()}


def _in_type(value: Array, zero: Array) -> Array:
    limits = np.iinfo(zero.dtype)
    if limits.max >= value.max() and limits.min <= value.min():
        return value.astype(zero.dtype)
    return np.clip(value.astype(np.int64), limits.min, limits.max).astype(zero.dtype)


def _hypotheses(truth: ModelProto, executed: Graph) -> Iterator[tuple[str, str, ModelProto, dict[str, Any]]]:
    """Yield every cause that the reference can compute: name, description, graph, options."""
    for accumulate, where in (("vpmaddubsw", "ONNX Runtime"), ("vpmaddubsw-onednn", "oneDNN")):
        text = f"sums of two products saturate at 16 bits, paired as in {where}"
        yield "pair-saturation", text, truth, {"accumulate": accumulate}
    yield from _lost(truth, executed)
    for cause, text, edit in (
        ("read-as-signed", "as if integers above 127 were read as signed", _as_signed),
        ("missing-clip", "as without the clips and ReLUs that the graph has", _without_clips),
        ("per-tensor-weight", "as with one scale for all channels of the weight", _per_tensor),
        ("channel-order", "as with the input's channels reversed (BGR for RGB)", _reversed_channels),
    ):
        graph = Graph(truth)
        if edit(graph):
            graph.remove_unused()
            graph.sort()
            yield cause, text, graph.to_model(), {}
    yield "bfloat16", "as with the float part in bfloat16", truth, {"float_dtype": "bfloat16"}


def _lost(truth: ModelProto, executed: Graph) -> Iterator[tuple[str, str, ModelProto, dict[str, Any]]]:
    graph = Graph(truth)
    present = set(quantized_tensors(executed))
    missing = [name for name in quantized_tensors(graph) if name not in present]
    inner = sorted(inner_pairs(graph) & present)
    for names, how in ((missing, "is not in the engine's graph"), (inner, "is left out by the runtime")):
        if names:
            first = names[0].removesuffix(".quantized")
            shown = first if len(names) == 1 else f"{first} and {len(names) - 1} more"
            text = f"as without the rounding at {shown}, which {how}"
            yield "lost-qdq", text, without_pairs(truth, names), {}


def _as_signed(graph: Graph) -> bool:
    changed = False
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        zero = graph.constants[node.input[2]]
        if zero.dtype == np.uint8 and zero.size == 1 and not zero.any():
            name = f"{node.input[2]}.signed"
            graph.constants[name] = np.zeros(zero.shape, np.int8)
            node.input[2] = name
            changed = True
    graph.reindex()
    return changed


def _without_clips(graph: Graph) -> bool:
    clips = [node for node in graph.nodes if node.op_type in ("Clip", "Relu")]
    for node in clips:
        graph.replace_input(node.output[0], node.input[0])
    return bool(clips)


def _per_tensor(graph: Graph) -> bool:
    changed = False
    for node in graph.nodes:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        weight = dequantized_constant(graph, node.input[1])
        if weight is None or weight.scale.size < 2 or len(graph.consumers[weight.node.input[0]]) > 1:
            continue
        axis = attribute(weight.node, "axis", 1) % weight.integers.ndim
        shape = [-1 if dim == axis else 1 for dim in range(weight.integers.ndim)]
        coarse = weight.scale.max()
        ratio = (weight.scale.astype(np.float64) / float(coarse)).reshape(shape)
        name, scale = f"{weight.node.input[0]}.coarse", f"{weight.node.input[1]}.coarse"
        graph.constants[name] = np.rint(weight.integers * ratio).astype(np.int8)
        graph.constants[scale] = np.full_like(weight.scale, coarse)
        weight.node.input[0], weight.node.input[1] = name, scale
        changed = True
    graph.reindex()
    return changed


def _reversed_channels(graph: Graph) -> bool:
    """Reverse the input channels of convolutions that read the graph's input."""
    changed = False
    for node in graph.nodes:
        if node.op_type != "Conv" or not _reads_input(graph, node.input[0]):
            continue
        weight = dequantized_constant(graph, node.input[1])
        if weight is not None and weight.integers.ndim == 4 and weight.integers.shape[1] == 3:
            name = f"{weight.node.input[0]}.reversed"
            graph.constants[name] = np.ascontiguousarray(weight.integers[:, ::-1])
            weight.node.input[0] = name
            changed = True
    graph.reindex()
    return changed


def _reads_input(graph: Graph, name: str) -> bool:
    pair = dequantize_of(graph, name)
    if pair is None:
        return name in graph.input_names
    quantize = graph.producer.get(pair.input[0])
    return quantize is not None and quantize.input[0] in graph.input_names
