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
from edgeattn.measure.layers import LayerDifference, LayerTally
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_causes import find_causes, inner_pairs, quantized_tensors, without_pairs
from edgeattn.targets import Session, Target
from edgeattn.targets.reference import make_program

__all__ = ["LayerParity", "compare_layers", "cut_model"]

_IN, _OUT = ".given", ".got"
_OFF_GRID = 1e-3
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
        drift: End to end, on the first image: share of each tensor's integers that are not the reference's.
        same_outputs: Whether the cut engine, run on its own integers until nothing changes, gives the whole
            engine's outputs bit for bit: then the pieces compute what the whole computes.
    """

    images: int
    layers: tuple[LayerDifference, ...]
    output_error: float
    removed_pairs: tuple[str, ...]
    int8_convolutions: int | None
    int8_convolutions_whole: int | None
    drift: tuple[tuple[str, float], ...] = ()
    same_outputs: bool | None = None

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
            "drift": [{"name": name, "different_share": share} for name, share in self.drift],
            "same_outputs": self.same_outputs,
            "layers": [layer.to_json() for layer in self.layers],
        }


def cut_model(
    model: ModelProto,
    names: Sequence[str],
    zero_points: Mapping[str, Array] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> ModelProto:
    """Cut a QDQ graph at quantized tensors.

    Args:
        model: With Q/DQ.
        names: Integers that QuantizeLinears write.
        zero_points: Theirs in the graph before it was lowered; None if it was not.
        shapes: Likewise. Lowering may have added copies of the last channel.

    Returns:
        A model with an input ``<name>.given`` and an output ``<name>.got`` for each, float32, quantized and
        dequantized inside.

    Raises:
        ModelError: If a shape is not known, or is another one but for channels added.
    """
    graph = Graph(model)
    graph.sort()
    own_shapes = graph.shapes()
    quantized = quantized_tensors(graph)
    for name in names:
        quantize = quantized[name]
        given, got = f"{name}{_IN}", f"{name}{_OUT}"
        shape = own_shapes.get(quantize.input[0], own_shapes.get(name))
        if shape is None:
            raise ModelError(f"The shape of {name!r} is not known, so the graph cannot be cut there.")
        wanted = (shapes or {}).get(name, shape)
        written, read = (given, got) if wanted == shape else (f"{given}.wide", f"{got}.wide")
        readers = list(graph.consumers.get(name, []))
        # Integers may be padded before they are read.
        padded = [graph.consumers.get(node.output[0], []) for node in readers if node.op_type == "Pad"]
        pairs = [node for node in sum(padded, readers) if node.op_type == "DequantizeLinear"]
        # Lowering may fold a factor into the scale of the QuantizeLinear alone.
        parameters = list((pairs[0] if pairs else quantize).input[1:])
        if zero_points and _is_in_a_bias(graph, quantize, pairs, zero_points[name]):
            parameters[1] = quantize.input[2]
        graph.nodes.append(_renamed(quantize, [written, *parameters], f"{given}.quantized"))
        for node in readers:
            node.input[:] = [f"{given}.quantized" if item == name else item for item in node.input]
        graph.nodes.append(helper.make_node("DequantizeLinear", [name, *parameters], [read], read))
        if wanted != shape:
            _add_channels(graph, name, wanted, shape)
        graph.inputs.append(helper.make_tensor_value_info(given, TensorProto.FLOAT, wanted))
        graph.outputs.append(helper.make_tensor_value_info(got, TensorProto.FLOAT, wanted))
    graph.reindex()
    graph.sort()
    return graph.to_model()


def _add_channels(graph: Graph, name: str, wanted: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Widen what a piece is given by copies of its last channel, and narrow what it writes."""
    if len(wanted) != len(shape) or wanted[:1] + wanted[2:] != shape[:1] + shape[2:] or wanted[1] > shape[1]:
        raise ModelError(
            f"{name!r} has shape {shape} after lowering, {wanted} before: layers cannot be compared."
        )
    every = np.arange(wanted[1])
    sides = (
        (f"{name}{_IN}", f"{name}{_IN}.wide", shape[1]),
        (f"{name}{_OUT}.wide", f"{name}{_OUT}", wanted[1]),
    )
    for source, result, count in sides:
        graph.constants[f"{result}.channels"] = np.pad(every, (0, count - len(every)), "edge")
        graph.nodes.append(
            helper.make_node("Gather", [source, f"{result}.channels"], [result], result, axis=1)
        )


def _is_in_a_bias(graph: Graph, quantize: NodeProto, pairs: Sequence[NodeProto], right: Array) -> bool:
    """Return whether lowering put the zero point of a tensor into the bias of what reads it.

    Integers are written with the right zero point then, and read with none; lowering may have changed their type.
    """
    if len(quantize.input) < 3 or not pairs or any(len(node.input) < 3 for node in pairs):
        return False
    written, read = graph.constant(quantize.input[2]), graph.constant(pairs[0].input[2])
    if written is None or read is None or read.any():
        return False
    shift = np.iinfo(written.dtype).min - np.iinfo(right.dtype).min
    return bool(written.any()) and bool(np.all(written.astype(np.int64) == int(right.reshape(())) + shift))


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
    right = without_pairs(truth, removed, keeps_clips=True)
    # How a runtime adds biases is its choice, not an error.
    options: dict[str, Any] = {"bias": "float"} if getattr(target, "adds_float_biases", False) else {}
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
    runs: list[tuple[dict[str, Array], dict[str, Array]]] = []
    drift: tuple[tuple[str, float], ...] = ()
    same: bool | None = None
    source, outputs, shapes = graph.input_names[0], graph.output_names, graph.shapes()
    worst_output = 0.0
    with (
        tempfile.TemporaryDirectory(prefix="edgeattn-cut-") as folder,
        _opened(
            cut_model(
                executed,
                keys,
                {name: np.asarray(parameters[name][1]) for name in keys},
                {name: shapes[tensors[name].input[0]] for name in keys},
            ),
            executed,
            target,
            Path(folder),
        ) as (cut, whole, counts),
    ):
        pieces = _Pieces(cut, source, outputs, parameters)
        for done, image in enumerate(images):
            expected = reference.run({source: image}, keys)
            got, results = pieces.infer(image, expected)
            for name in keys:
                tallies[name].add(expected[name], got[name])
                kept[name].append((expected[name], got[name]))
            runs.append(({source: image}, expected))
            for output in outputs:
                span = float(np.abs(expected[output]).max()) or 1.0
                gap = float(np.abs(expected[output] - results[output]).max())
                worst_output = max(worst_output, gap / span)
            if done == 0:
                own, own_results = pieces.settle(image, expected)
                at_once = whole.infer({source: image})
                drift = tuple((name, float(np.mean(own[name] != expected[name]))) for name in keys)
                same = all(np.array_equal(own_results[output], at_once[output]) for output in outputs)
            if progress:
                progress(done + 1, len(images))
    suspects = [name for name, tally in tallies.items() if not tally.is_plain()]
    findings = find_causes(right, other, suspects, parameters, kept, runs, options)
    return LayerParity(
        images=len(images),
        layers=tuple(tallies[name].result(findings.get(name)) for name in keys),
        output_error=worst_output,
        removed_pairs=tuple(removed),
        int8_convolutions=counts[0],
        int8_convolutions_whole=counts[1],
        drift=drift,
        same_outputs=same,
    )


@dataclasses.dataclass(frozen=True)
class _Pieces:
    """The engine of a cut graph.

    Attributes:
        session: Open.
        source: The graph's input.
        outputs: The graph's outputs.
        parameters: Scale and zero point of every tensor that the graph is cut at.
    """

    session: Session
    source: str
    outputs: Sequence[str]
    parameters: Mapping[str, tuple[Array, Array]]

    def infer(self, image: Array, integers: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run every piece from given integers; return what each wrote, in steps, and the outputs."""
        results = self.session.infer(self._feeds(image, integers))
        got = {name: self._steps(name, results[f"{name}{_OUT}"]) for name in self.parameters}
        return got, {name: results[name] for name in self.outputs}

    def settle(
        self, image: Array, integers: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run on what the pieces wrote themselves until nothing changes: as the whole runs.

        After each pass at least one more piece has the inputs that it has in the whole.
        """
        feeds = self._feeds(image, integers)
        for _ in range(len(self.parameters) + 1):
            results = self.session.infer(feeds)
            changed = [
                n for n in self.parameters if not np.array_equal(results[f"{n}{_OUT}"], feeds[f"{n}{_IN}"])
            ]
            if not changed:
                break
            for name in changed:
                feeds[f"{name}{_IN}"] = results[f"{name}{_OUT}"]
        got = {
            name: _whole(self._steps(name, results[f"{name}{_OUT}"]), zero)
            for name, (_, zero) in self.parameters.items()
        }
        return got, {name: results[name] for name in self.outputs}

    def _feeds(self, image: Array, integers: Mapping[str, Array]) -> dict[str, Array]:
        feeds = {self.source: image}
        for name, (scale, zero) in self.parameters.items():
            steps = integers[name].astype(np.float32) - np.float32(zero)
            feeds[f"{name}{_IN}"] = steps * np.float32(scale)
        return feeds

    def _steps(self, name: str, values: Array) -> Array:
        scale, zero = self.parameters[name]
        steps = values.astype(np.float64) / float(scale) + float(zero)
        # float32 cannot hold every multiple of a scale exactly.
        near = np.rint(steps)
        return np.where(np.abs(steps - near) < _OFF_GRID, near, steps)


def _whole(steps: Array, zero: Array) -> Array:
    limits = np.iinfo(zero.dtype)
    return np.clip(np.rint(steps), limits.min, limits.max).astype(zero.dtype)


@contextlib.contextmanager
def _opened(
    pieces: ModelProto, whole: ModelProto, target: Target, folder: Path
) -> Iterator[tuple[Session, Session, tuple[int | None, int | None]]]:
    """Open the engines of the pieces and of the whole, and count their convolutions that run in INT8."""
    counts, engines = [], []
    for stem, model in (("pieces", pieces), ("whole", whole)):
        (folder / stem).mkdir()
        artifact = save_artifact(model, folder / f"{stem}.onnx", target.profile)
        engines.append(target.build(artifact, folder / stem))
        counts.append(engines[-1].details.get("int8_convolutions"))
    with target.open(engines[0]) as first, target.open(engines[1]) as second:
        yield first, second, (counts[0], counts[1])
