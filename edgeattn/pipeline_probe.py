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
from collections.abc import Callable, Iterator, Sequence
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
    findings = find_causes(right, other, suspects, parameters, kept, feeds_of, options)
    return LayerParity(
        images=len(images),
        layers=tuple(tallies[name].result(findings.get(name)) for name in keys),
        output_error=worst_output,
        removed_pairs=tuple(removed),
        int8_convolutions=counts[0],
        int8_convolutions_whole=counts[1],
    )


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
