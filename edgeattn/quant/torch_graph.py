"""A canonical ONNX graph as torch code, with simulated quantization.

Planning has to know what quantization does to a network before any runtime is chosen, and to learn
from it. ONNX Runtime gives no gradients and no access in between; this interpreter gives both. It
computes what the QDQ graph computes: weights and activations pass through their 8-bit grid, sums are
float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import NodeProto

from edgeattn.answers import Answers
from edgeattn.onnx_graph import Graph
from edgeattn.onnx_node import evaluate_node
from edgeattn.quant.output_weights import answering_softmax, output_weights
from edgeattn.quant.plan import Profile, QuantParams, QuantPlan
from edgeattn.quant.torch_operations import OPERATIONS

__all__ = ["TorchGraph", "fake_quantize", "quantizers_of"]

Tensor = torch.Tensor
Quantizer = Callable[[Tensor], Tensor]


class TorchGraph:
    """Runs nodes of a graph over torch tensors.

    Attributes:
        graph: Nodes in order of computation. Its constants are not read after construction.
        constants: Float and integer constants by name, free to be replaced.

    Args:
        graph: Canonical fp32 graph with one input.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = Graph(graph.to_model())
        self.graph.sort()
        self.constants: dict[str, Tensor] = {
            name: torch.from_numpy(np.array(value)) for name, value in self.graph.constants.items()
        }
        self.input_name = self.graph.input_names[0]
        self._weights = output_weights(self.graph)
        softmax = answering_softmax(self.graph)
        self._scores = softmax.input[0] if softmax is not None else ""
        self.output_names = frozenset([self._scores] if self._scores else self.graph.output_names)
        self._last_use = {name: i for i, node in enumerate(self.graph.nodes) for name in node.input}
        self._shapes: dict[str, tuple[int, ...]] | None = None

    def __call__(self, batch: Tensor, quantizers: Mapping[str, Quantizer] | None = None) -> Tensor:
        """Return the graph's answer for images (N, C, H, W)."""
        values = {self.input_name: batch}
        self.run(values, range(len(self.graph.nodes)), quantizers or {}, self.output_names)
        return self.answer(values)

    def answer(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return what the graph says: its output, or several as rows (N, numbers), each divided by its size.

        Of a classifier whose probabilities a softmax gives, the scores before it: where one class is all but certain,
        probabilities tell of no error until it changes the answer.
        """
        if self._scores:
            return values[self._scores]
        if len(self._weights) == 1:
            return values[next(iter(self._weights))]
        return torch.cat([values[name].flatten(1) * weight for name, weight in self._weights.items()], dim=1)

    @property
    def gives_classes(self) -> bool:
        """Whether the answer is one row of scores, of which the largest decides."""
        return len(self._weights) == 1 and Answers.of(self.graph.io_specs()[1]).are_classes

    def run(
        self,
        values: dict[str, Tensor],
        nodes: Iterable[int],
        quantizers: Mapping[str, Quantizer],
        keep: frozenset[str] = frozenset(),
    ) -> None:
        """Compute some nodes, in place in `values`, dropping what no later node reads.

        Args:
            values: What the nodes read; receives what they write. Tensors in it that have a quantizer
                are quantized already, except for the graph's input.
            nodes: Indices into ``graph.nodes``, rising.
            quantizers: By tensor, what every reader of it sees instead.
            keep: Tensors not to drop.
        """
        for index in nodes:
            node = self.graph.nodes[index]
            if index == 0 and self.input_name in quantizers:
                values[self.input_name] = quantizers[self.input_name](values[self.input_name])
            inputs = [self._value(name, values) for name in node.input]
            operation = self._reshape if node.op_type == "Reshape" else OPERATIONS.get(node.op_type)
            results = operation(node, inputs) if operation else None
            if results is None:
                results = _reference(node, inputs, self.graph.opset)
            elif isinstance(results, torch.Tensor):
                results = [results]
            named = (name for name in node.output if name)
            for name, value in zip(named, results, strict=False):
                values[name] = quantizers[name](value) if name in quantizers else value
            for name in node.input:
                if name in values and self._last_use[name] <= index and name not in keep:
                    del values[name]

    def _reshape(self, node: NodeProto, inputs: Sequence[Any]) -> Any:
        """Reshape as the graph does for one image, with the others behind it in the first dimension.

        That is right wherever the image's number is the slowest index, as in windows and patches that became part of
        the batch; None where the graph tells no sizes.
        """
        if self._shapes is None:
            self._shapes = self.graph.shapes()
        before, after = (self._shapes.get(name, ()) for name in (node.input[0], node.output[0]))
        if not before or not after or min(before) < 1 or min(after) < 1:
            return None
        images, rest = divmod(inputs[0].numel(), math.prod(before))
        return None if rest else inputs[0].reshape(images * after[0], *after[1:])

    def _value(self, name: str, values: Mapping[str, Tensor]) -> Tensor | None:
        if not name:
            return None
        return values[name] if name in values else self.constants[name]


def fake_quantize(value: Tensor, params: QuantParams) -> Tensor:
    """Return the values that are left after QuantizeLinear and DequantizeLinear."""
    return torch.fake_quantize_per_tensor_affine(
        value, params.scale, params.zero_point, params.quant_min, params.quant_max
    )


def quantizers_of(plan: QuantPlan, profile: Profile) -> dict[str, Quantizer]:
    """Return the quantizer of every activation that `profile` quantizes."""

    def quantizer(params: QuantParams) -> Quantizer:
        return lambda value: fake_quantize(value, params)

    return {
        name: quantizer(item.params(profile))
        for name, item in plan.activations.items()
        if item.is_quantized(profile)
    }


def _reference(node: NodeProto, inputs: Sequence[Tensor | None], opset: int) -> list[Tensor]:
    """Compute an operation that is not written out here; no gradient passes through it."""
    feeds = {
        name: value.detach().numpy()
        for name, value in zip(node.input, inputs, strict=True)
        if value is not None
    }
    return [torch.from_numpy(np.array(value)) for value in evaluate_node(node, feeds, opset)]
