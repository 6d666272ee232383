"""A canonical ONNX graph as torch code, with simulated quantization.

Planning has to know what quantization does to a network before any runtime is chosen, and to learn
from it. ONNX Runtime gives no gradients and no access in between; this interpreter gives both. It
computes what the QDQ graph computes: weights and activations pass through their 8-bit grid, sums are
float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import NodeProto
from onnx.reference import ReferenceEvaluator

from edgeattn.onnx_graph import Graph, attribute
from edgeattn.quant.plan import Profile, QuantParams, QuantPlan

__all__ = ["TorchGraph", "fake_quantize", "quantizers_of"]

Tensor = torch.Tensor
Operation = Callable[[NodeProto, Sequence[Any]], Tensor]
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
        self.output_name = self.graph.output_names[0]
        self._last_use = {name: i for i, node in enumerate(self.graph.nodes) for name in node.input}

    def __call__(self, batch: Tensor, quantizers: Mapping[str, Quantizer] | None = None) -> Tensor:
        """Return the graph's first output for images (N, C, H, W)."""
        values = {self.input_name: batch}
        self.run(values, range(len(self.graph.nodes)), quantizers or {})
        return values[self.output_name]

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
            operation = OPERATIONS.get(node.op_type)
            result = operation(node, inputs) if operation else None
            results = _reference(node, inputs, self.graph.opset) if result is None else [result]
            for name, value in zip(node.output, results, strict=False):
                values[name] = quantizers[name](value) if name in quantizers else value
            for name in node.input:
                if name in values and self._last_use[name] <= index and name not in keep:
                    del values[name]

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
    evaluator = ReferenceEvaluator(node, opsets={"": opset})
    feeds = {
        name: value.detach().numpy()
        for name, value in zip(node.input, inputs, strict=True)
        if value is not None
    }
    return [torch.from_numpy(np.array(value)) for value in evaluator.run(None, feeds)]


def _pads(node: NodeProto, spatial: int) -> tuple[list[int], list[int]]:
    pads = list(attribute(node, "pads", [0] * (2 * spatial)))
    return pads[:spatial], pads[spatial:]


def _padded(node: NodeProto, value: Tensor, fill: float) -> tuple[Tensor, list[int]]:
    """Return the input and the symmetric padding left to the operation."""
    begin, end = _pads(node, value.ndim - 2)
    if begin == end:
        return value, begin
    pairs = [item for pair in zip(reversed(begin), reversed(end), strict=True) for item in pair]
    return F.pad(value, pairs, value=fill), [0] * len(begin)


def _is_plain(node: NodeProto) -> bool:
    return attribute(node, "auto_pad", "NOTSET") == "NOTSET" and not attribute(node, "ceil_mode", 0)


def _conv(node: NodeProto, inputs: Sequence[Any]) -> Any:
    value, weight = inputs[0], inputs[1]
    spatial = value.ndim - 2
    if spatial not in (1, 2) or not _is_plain(node):
        return None
    value, padding = _padded(node, value, 0.0)
    operation = F.conv2d if spatial == 2 else F.conv1d
    return operation(
        value,
        weight,
        inputs[2] if len(inputs) > 2 else None,
        tuple(attribute(node, "strides", [1] * spatial)),
        tuple(padding),
        tuple(attribute(node, "dilations", [1] * spatial)),
        int(attribute(node, "group", 1)),
    )


def _gemm(node: NodeProto, inputs: Sequence[Any]) -> Any:
    left = inputs[0].T if attribute(node, "transA", 0) else inputs[0]
    right = inputs[1].T if attribute(node, "transB", 0) else inputs[1]
    result = attribute(node, "alpha", 1.0) * (left @ right)
    if len(inputs) > 2 and inputs[2] is not None:
        result = result + attribute(node, "beta", 1.0) * inputs[2]
    return result


def _clip(node: NodeProto, inputs: Sequence[Any]) -> Any:
    low, high = (None if bound is None else float(bound) for bound in (*inputs[1:], None, None)[:2])
    return torch.clamp(inputs[0], low, high) if (low, high) != (None, None) else inputs[0]


def _pool(node: NodeProto, inputs: Sequence[Any]) -> Any:
    if inputs[0].ndim != 4 or not _is_plain(node) or list(attribute(node, "dilations", [1, 1])) != [1, 1]:
        return None
    kernel, strides = attribute(node, "kernel_shape"), tuple(attribute(node, "strides", [1, 1]))
    if node.op_type == "MaxPool":
        value, padding = _padded(node, inputs[0], float("-inf"))
        return F.max_pool2d(value, tuple(kernel), strides, tuple(padding)) if len(node.output) == 1 else None
    begin, end = _pads(node, 2)
    if begin != end:
        return None
    include = bool(attribute(node, "count_include_pad", 0))
    return F.avg_pool2d(inputs[0], tuple(kernel), strides, tuple(begin), count_include_pad=include)


def _reduce(node: NodeProto, inputs: Sequence[Any]) -> Any:
    axes = attribute(node, "axes")
    if axes is None and len(inputs) > 1 and inputs[1] is not None:
        axes = inputs[1].tolist()
    if not axes:
        return None
    keep = bool(attribute(node, "keepdims", 1))
    if node.op_type == "ReduceMean":
        return inputs[0].mean(tuple(axes), keep)
    return inputs[0].amax(tuple(axes), keep)


def _batched_reshape(node: NodeProto, inputs: Sequence[Any]) -> Any:
    """Reshape to a shape written for batch 1, whatever the batch is."""
    shape = [int(item) for item in inputs[1].tolist()]
    value = inputs[0]
    shape = [value.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    if shape and shape[0] == 1 and value.shape[0] != 1:
        shape[0] = value.shape[0]
    return value.reshape(shape)


def _flatten(node: NodeProto, inputs: Sequence[Any]) -> Any:
    axis = int(attribute(node, "axis", 1))
    return inputs[0].flatten(axis) if axis == 1 else None


def _axes_of(node: NodeProto, inputs: Sequence[Any]) -> list[int] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(item) for item in inputs[1].reshape(-1).tolist()]
    return None


def _slice(node: NodeProto, inputs: Sequence[Any]) -> Any:
    """Take a range along one axis with step 1, the only kind that the canonical graphs hold."""
    starts, ends = inputs[1].reshape(-1).tolist(), inputs[2].reshape(-1).tolist()
    axes = inputs[3].reshape(-1).tolist() if len(inputs) > 3 and inputs[3] is not None else [0]
    steps = inputs[4].reshape(-1).tolist() if len(inputs) > 4 and inputs[4] is not None else [1]
    if len(starts) != 1 or steps != [1] or len(axes) != 1:
        return None
    size = inputs[0].shape[int(axes[0])]
    start, end, _ = slice(int(starts[0]), int(ends[0])).indices(size)
    return inputs[0].narrow(int(axes[0]), start, max(end - start, 0))


def _squeeze(node: NodeProto, inputs: Sequence[Any]) -> Any:
    axes = _axes_of(node, inputs)
    return None if axes is None else inputs[0].squeeze(tuple(axes))


def _resize(node: NodeProto, inputs: Sequence[Any]) -> Any:
    """Interpolate as torch does, in the two spellings that torch exports."""
    mode = attribute(node, "mode", "nearest")
    place = attribute(node, "coordinate_transformation_mode", "half_pixel")
    value = inputs[0]
    if value.ndim != 4 or len(inputs) < 3:
        return None
    if len(inputs) > 3 and inputs[3] is not None:
        size = [int(item) for item in inputs[3].tolist()[2:]]
    else:
        size = [
            int(side * scale) for side, scale in zip(value.shape[2:], inputs[2].tolist()[2:], strict=True)
        ]
    if mode == "nearest" and place == "asymmetric" and attribute(node, "nearest_mode", "") == "floor":
        return F.interpolate(value, size, mode="nearest")
    if mode == "linear" and place in ("half_pixel", "pytorch_half_pixel") and min(size) > 1:
        return F.interpolate(value, size, mode="bilinear", align_corners=False)
    return None


def _grid_sample(node: NodeProto, inputs: Sequence[Any]) -> Any:
    mode = attribute(node, "mode", "linear")
    if mode not in ("bilinear", "linear", "nearest") or inputs[0].ndim != 4:
        return None
    return F.grid_sample(
        inputs[0],
        inputs[1],
        "nearest" if mode == "nearest" else "bilinear",
        attribute(node, "padding_mode", "zeros"),
        bool(attribute(node, "align_corners", 0)),
    )


def _unsqueeze(node: NodeProto, inputs: Sequence[Any]) -> Any:
    value, axes = inputs[0], _axes_of(node, inputs)
    if axes is None:
        return None
    for axis in sorted(axis % (value.ndim + len(axes)) for axis in axes):
        value = value.unsqueeze(axis)
    return value


def _reduce_sum(node: NodeProto, inputs: Sequence[Any]) -> Any:
    axes = _axes_of(node, inputs) or attribute(node, "axes")
    return inputs[0].sum(tuple(axes), bool(attribute(node, "keepdims", 1))) if axes else None


def _hard_sigmoid(node: NodeProto, inputs: Sequence[Any]) -> Any:
    alpha, beta = float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))
    return torch.clamp(inputs[0] * alpha + beta, 0.0, 1.0)


OPERATIONS: dict[str, Operation] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": lambda node, x: x[0] @ x[1],
    "Clip": _clip,
    "Relu": lambda node, x: F.relu(x[0]),
    "LeakyRelu": lambda node, x: F.leaky_relu(x[0], float(attribute(node, "alpha", 0.01))),
    "Sigmoid": lambda node, x: torch.sigmoid(x[0]),
    "Tanh": lambda node, x: torch.tanh(x[0]),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node, x: F.hardswish(x[0]),
    "Softmax": lambda node, x: torch.softmax(x[0], int(attribute(node, "axis", -1))),
    "Add": lambda node, x: x[0] + x[1],
    "Sub": lambda node, x: x[0] - x[1],
    "Mul": lambda node, x: x[0] * x[1],
    "Div": lambda node, x: x[0] / x[1],
    "GlobalAveragePool": lambda node, x: x[0].mean(tuple(range(2, x[0].ndim)), keepdim=True),
    "GlobalMaxPool": lambda node, x: x[0].amax(tuple(range(2, x[0].ndim)), keepdim=True),
    "AveragePool": _pool,
    "MaxPool": _pool,
    "ReduceMean": _reduce,
    "ReduceMax": _reduce,
    "Flatten": _flatten,
    "Reshape": _batched_reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Concat": lambda node, x: torch.cat(list(x), int(attribute(node, "axis"))),
    "Transpose": lambda node, x: x[0].permute(tuple(attribute(node, "perm", range(x[0].ndim)[::-1]))),
    "Resize": _resize,
    "GridSample": _grid_sample,
    "Unsqueeze": _unsqueeze,
    "ReduceSum": _reduce_sum,
    "Sqrt": lambda node, x: torch.sqrt(x[0]),
    "Exp": lambda node, x: torch.exp(x[0]),
    "Neg": lambda node, x: -x[0],
    "Abs": lambda node, x: torch.abs(x[0]),
    "Pow": lambda node, x: torch.pow(x[0], x[1]),
    "Identity": lambda node, x: x[0],
}
