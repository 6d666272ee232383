"""Put every layer of an engine beside the integer reference, both given the same integers.

The lowered graph is cut at its Q/DQ pairs: what a pair wrote becomes an output, and what read it reads an
input. One engine of all the pieces then runs every layer from the reference's integers in one inference, in
the kernels that it would take in the whole graph: those are cut at the same places. Pairs inside a kernel
(between a convolution and its residual sum) stay.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from edgeattn.errors import ModelError
from edgeattn.export.artifacts import save_artifact
from edgeattn.lower.patterns import dequantize_of, dequantized_constant, remove_pair
from edgeattn.measure.layers import Finding, LayerDifference, LayerTally, diagnose
from edgeattn.onnx_graph import Graph, attribute
from edgeattn.targets import Session, Target
from edgeattn.targets.reference import make_program

__all__ = ["LayerParity", "compare_layers", "cut_model", "inner_pairs", "quantized_tensors"]

_IN, _OUT = ".given", ".got"
_FLOAT_BIAS = frozenset({"openvino-cpu"})
Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class LayerParity:
    """Every layer of an engine against the reference.

    Attributes:
        images: Compared.
        layers: In graph order.
        output_error: Largest difference of the float outputs, given the same integers, as a share of the
            largest output.
        removed_pairs: Quantized tensors of the exported graph that the target's lowering does not round.
        int8_convolutions: Of the cut engine ...
        int8_convolutions_whole: ... and of the whole one: equal if both use the same kernels.
    """

    images: int
    layers: tuple[LayerDifference, ...]
    output_error: float
    removed_pairs: tuple[str, ...]
    int8_convolutions: int | None
    int8_convolutions_whole: int | None

    @property
    def first_error(self) -> LayerDifference | None:
        """The first layer that differs by more than its inputs explain."""
        return next((layer for layer in self.layers if layer.finding.is_error), None)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        first = self.first_error
        worst = max((layer.over_one_share for layer in self.layers), default=0.0)
        total = sum(layer.n for layer in self.layers)
        return {
            "images": self.images,
            "different_share": sum(layer.different_share * layer.n for layer in self.layers) / max(total, 1),
            "largest_over_one_share": worst,
            "output_error": self.output_error,
            "first_error": None if first is None else {"name": first.name, "module": first.module},
            "removed_pairs": list(self.removed_pairs),
            "int8_convolutions": self.int8_convolutions,
            "int8_convolutions_whole": self.int8_convolutions_whole,
            "layers": [layer.to_json() for layer in self.layers],
        }


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


def cut_model(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Cut a QDQ graph at quantized tensors.

    Args:
        model: With Q/DQ.
        names: Integers that QuantizeLinears write.

    Returns:
        A model with an input ``<name>.given`` and an output ``<name>.got`` for each, float32, quantized and
        dequantized inside.
    """
    graph = Graph(model)
    graph.sort()
    shapes = graph.shapes()
    quantized = quantized_tensors(graph)
    for name in names:
        quantize = quantized[name]
        given, got = f"{name}{_IN}", f"{name}{_OUT}"
        shape = shapes.get(quantize.input[0], shapes.get(name))
        if shape is None:
            raise ModelError(f"The shape of {name!r} is not known, so the graph cannot be cut there.")
        readers = list(graph.consumers.get(name, []))
        pairs = [node for node in readers if node.op_type == "DequantizeLinear"]
        # Lowering may fold a factor into the scale of the QuantizeLinear alone.
        parameters = list((pairs[0] if pairs else quantize).input[1:])
        graph.nodes.append(_renamed(quantize, [given, *parameters], f"{given}.quantized"))
        for node in readers:
            node.input[:] = [f"{given}.quantized" if item == name else item for item in node.input]
        graph.nodes.append(helper.make_node("DequantizeLinear", [name, *parameters], [got], got))
        graph.inputs.append(helper.make_tensor_value_info(given, TensorProto.FLOAT, shape))
        graph.outputs.append(helper.make_tensor_value_info(got, TensorProto.FLOAT, shape))
    graph.reindex()
    graph.sort()
    return graph.to_model()


def _renamed(node: NodeProto, inputs: Sequence[str], output: str) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = output
    copy.input[:], copy.output[:] = inputs, [output]
    return copy


def compare_layers(
    truth: ModelProto,
    executed: ModelProto,
    target: Target,
    images: Sequence[Array],
    *,
    module_of: Callable[[str], str | None] = lambda name: None,
    removed: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> LayerParity:
    """Run every layer of `executed` on a target from the reference's integers, and compare.

    Args:
        truth: The QDQ graph whose arithmetic is right.
        executed: What the target is given: lowered, its quantized tensors named as in `truth`.
        target: Builds and runs the pieces.
        images: Inputs (1, C, H, W).
        module_of: From a tensor's name to a module path.
        removed: Tensors that lowering is known not to round: the truth does not round them either.
        progress: Called with (done, total) images.

    Raises:
        EdgeAttnError: What the target raises.
        ModelError: If the graphs have no quantized tensor in common.
    """
    right = without_pairs(truth, removed)
    # How a runtime adds biases is its choice, not an error.
    options: dict[str, Any] = {"bias": "float"} if target.name in _FLOAT_BIAS else {}
    reference = make_program(right, **options)
    graph, other = Graph(right), Graph(executed)
    inner = inner_pairs(graph) | inner_pairs(other)
    present = quantized_tensors(other)
    tensors = {
        name: node
        for name, node in quantized_tensors(graph).items()
        if name in present and name not in inner and node.input[0] in graph.producer
    }
    if not tensors:
        raise ModelError("The graphs have no quantized tensor in common: there is no layer to compare.")
    keys = list(tensors)
    parameters = {name: reference.parameters(name) for name in keys}
    tallies = {name: LayerTally(name, module_of(name), int(parameters[name][1])) for name in keys}
    kept: dict[str, list[tuple[Array, Array]]] = {name: [] for name in keys}
    feeds_of: list[tuple[dict[str, Array], dict[str, Array]]] = []
    source, output = graph.input_names[0], graph.output_names[0]
    worst_output = 0.0
    pieces = cut_model(executed, keys)
    with (
        tempfile.TemporaryDirectory(prefix="edgeattn-cut-") as folder,
        _opened(pieces, executed, target, Path(folder)) as (session, counts),
    ):
        for done, image in enumerate(images):
            given = reference.run({source: image}, keys)
            expected = reference.run({source: image}, keys, given)
            feeds = {source: image}
            for name in keys:
                feeds[f"{name}{_IN}"] = _dequantize(given[name], *parameters[name])
            got = session.infer(feeds)
            for name in keys:
                scale, zero = parameters[name]
                steps = got[f"{name}{_OUT}"].astype(np.float64) / float(scale) + float(zero)
                # float32 cannot hold every multiple of a scale exactly.
                near = np.rint(steps)
                steps = np.where(np.abs(steps - near) < 1e-3, near, steps)
                tallies[name].add(expected[name], steps)
                kept[name].append((expected[name], steps))
            feeds_of.append(({source: image}, given))
            span = float(np.abs(expected[output]).max()) or 1.0
            worst_output = max(worst_output, float(np.abs(expected[output] - got[output]).max()) / span)
            if progress:
                progress(done + 1, len(images))
    suspects = [name for name, tally in tallies.items() if not tally.is_plain()]
    findings = _findings(right, other, suspects, parameters, kept, feeds_of, options)
    return LayerParity(
        images=len(images),
        layers=tuple(tallies[name].result(findings.get(name)) for name in keys),
        output_error=worst_output,
        removed_pairs=tuple(removed),
        int8_convolutions=counts[0],
        int8_convolutions_whole=counts[1],
    )


def without_pairs(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return the graph without the Q/DQ pairs of some tensors."""
    if not names:
        return model
    graph = Graph(model)
    for name in names:
        quantize = quantized_tensors(graph).get(name)
        if quantize is not None:
            remove_pair(graph, quantize)
    graph.remove_unused()
    graph.sort()
    return graph.to_model()


@contextlib.contextmanager
def _opened(
    pieces: ModelProto, whole: ModelProto, target: Target, folder: Path
) -> Iterator[tuple[Session, tuple[int | None, int | None]]]:
    """Open the engine of the pieces, and count the convolutions of both that run in INT8."""
    counts, engines = [], []
    for stem, model in (("pieces", pieces), ("whole", whole)):
        (folder / stem).mkdir()
        artifact = save_artifact(model, folder / f"{stem}.onnx", target.profile)
        engines.append(target.build(artifact, folder / stem))
        counts.append(engines[-1].details.get("int8_convolutions"))
    with target.open(engines[0]) as session:
        yield session, (counts[0], counts[1])


def _dequantize(integers: Array, scale: Array, zero: Array) -> NDArray[np.float32]:
    steps = integers.astype(np.float32) - np.float32(zero)
    value: NDArray[np.float32] = steps * np.float32(scale)
    return value


# ------------------------------------------------------------------------------------ causes


def _findings(
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
    predicted: dict[str, dict[tuple[str, str], list[Array]]] = {name: {} for name in suspects}
    for cause, text, model, options in _hypotheses(truth, executed):
        program = make_program(model, **{**base, **options})
        known = set(program.quantized_names)
        wanted = [name for name in suspects if name in known]
        for feeds, given in runs:
            fitting = {
                key: _in_type(value, program.parameters(key)[1])
                for key, value in given.items()
                if key in known
            }
            results = program.run(feeds, wanted, fitting)
            for name in suspects:
                if name in results:
                    predicted[name].setdefault((cause, text), []).append(results[name])
    found = {}
    for name in suspects:
        expected = np.concatenate([pair[0].ravel() for pair in kept[name]])
        got = np.concatenate([pair[1].ravel() for pair in kept[name]])
        zero = parameters[name][1]
        limits = np.iinfo(zero.dtype)
        alternatives = {
            what: np.concatenate([value.ravel() for value in values]).astype(np.int64)
            for what, values in predicted[name].items()
        }
        alternatives = {what: v for what, v in alternatives.items() if not np.array_equal(v, expected)}
        found[name] = diagnose(expected, got, int(zero), (int(limits.min), int(limits.max)), alternatives)
    return found


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
