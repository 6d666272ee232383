"""A QDQ graph as a fused INT8 runtime executes it: integers in, whole accumulators, one rounding.

What lies between DequantizeLinear and QuantizeLinear is never rounded in between: convolutions and matrix
products are whole numbers, and the activations, sums, products and pools behind them are computed in
float64, whose error is a billionth of a step. What is not on the way to a QuantizeLinear (float regions, the
outputs) is float32. So the result is what the graph means in exact arithmetic with the chosen rounding, and
any runtime's distance from it is that runtime's own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from edgeattn.errors import ModelError
from edgeattn.lower.fill_channels import reads_filled_image
from edgeattn.onnx_graph import Graph, attribute
from edgeattn.targets._reference.integer import convolve, exact_dtype, matmul_pairs
from edgeattn.targets._reference.numbers import Arithmetic, Real, as_float32, quantize, round_bfloat16
from edgeattn.targets._reference.ops import AVERAGING, FLOAT, MOVING, as_map, fallback, from_map, window_of

__all__ = ["Program"]

Array = NDArray[Any]
Value = Array | Real

_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
# What integer kernels compute together with what comes before and behind, when only a QuantizeLinear follows.
_ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub", "Sum"})
_ACTIVATIONS = frozenset({"Clip", "HardSigmoid", "HardSwish", "Relu", "Sigmoid"})
_FUSED = _ARITHMETIC | _ACTIVATIONS | frozenset(AVERAGING) | frozenset(MOVING)
_ROUNDLESS = frozenset({"Clip", "Relu", *AVERAGING, *MOVING})
_EMPTY = np.empty(0, np.float32)


class Program:
    """An executable graph.

    Args:
        model: Float, or with Q/DQ in either profile.
        arithmetic: What the graph leaves open.

    Raises:
        ModelError: If the graph is not valid.
    """

    def __init__(self, model: ModelProto, arithmetic: Arithmetic | None = None) -> None:
        self.arithmetic = arithmetic or Arithmetic()
        self.graph = Graph(model)
        self.graph.sort()
        self._constants: dict[str, Value] = dict(self.graph.constants)
        self._nodes = [node for node in self.graph.nodes if not self._fold(node)]
        self._last_use = _last_uses(self._nodes, self.graph.output_names)
        self._wide = self._find_fused()
        if self.arithmetic.float_dtype != "float32":
            # What is neither a product nor moved is what a runtime computes in the short type.
            kept = {n for node in self._nodes if node.op_type in _ROUNDLESS for n in node.output}
            self._wide &= kept
        self._weights: dict[tuple[str, bool], tuple[Array, float]] = {}

    @property
    def quantized_names(self) -> list[str]:
        """Names of the integer tensors that the graph computes, in order."""
        return [node.output[0] for node in self._nodes if node.op_type == "QuantizeLinear"]

    def parameters(self, name: str) -> tuple[Array, Array]:
        """Return scale and zero point of a quantized tensor."""
        node = self.graph.producer[name]
        scale, zero_point = self._parameters(node)
        return scale, zero_point

    def counts(self) -> dict[str, Any]:
        """Return what there is to execute, in the words that targets share."""
        operators = Counter(node.op_type for node in self._nodes)
        integer = sum(node.op_type == "Conv" and self._is_integer(node) for node in self._nodes)
        return {
            "int8_convolutions": integer,
            "float_convolutions": operators["Conv"] - integer,
            "kernels": operators.total(),
            "reformats": operators["Transpose"],
            "operators": dict(sorted(operators.items())),
        }

    def dtype_of(self, node: NodeProto) -> str:
        """Return the element type that a node computes in."""
        if self._is_integer(node):
            return "int8"
        return "float64" if node.output[0] in self._wide else self.arithmetic.float_dtype

    def run(
        self,
        feeds: Mapping[str, Array],
        keep: Iterable[str] = (),
        given: Mapping[str, Array] | None = None,
        clock: Callable[[NodeProto, int], None] | None = None,
    ) -> dict[str, Array]:
        """Execute the graph.

        Args:
            feeds: The graph's inputs.
            keep: Names of tensors to return beside the outputs: integers where they are quantized, else
                float32.
            given: Values that later nodes read in place of those computed under these names. What was
                computed is what is returned: so every layer is computed from given inputs.
            clock: Told how many nanoseconds each node took.

        Raises:
            ModelError: If a node cannot be computed.
        """
        given = given or {}
        wanted = {*keep, *self.graph.output_names}
        values: dict[str, Value] = {**self._constants, **feeds}
        kept: dict[str, Array] = {name: np.asarray(feeds[name]) for name in wanted if name in feeds}
        for index, node in enumerate(self._nodes):
            start = time.perf_counter_ns() if clock else 0
            for name, value in zip(node.output, self._execute(node, values), strict=False):
                if name in wanted:
                    kept[name] = as_float32(value)
                values[name] = given.get(name, value)
            for name in node.input:
                if self._last_use.get(name, -1) == index and name not in self._constants:
                    values.pop(name, None)
            if clock:
                clock(node, time.perf_counter_ns() - start)
        missing = wanted - kept.keys()
        if missing:
            raise ModelError(f"The graph computes no tensor {min(missing)!r}.")
        return kept

    # ----------------------------------------------------------------------------- preparation

    def _fold(self, node: NodeProto) -> bool:
        """Make a constant of a DequantizeLinear that reads one."""
        if node.op_type != "DequantizeLinear" or node.input[0] not in self.graph.constants:
            return False
        integers = self.graph.constants[node.input[0]]
        scale, zero = self._parameters(node)
        axis = attribute(node, "axis", 1)
        self._constants[node.output[0]] = _dequantized(integers, scale, zero, axis)
        return True

    def _parameters(self, node: NodeProto) -> tuple[Array, Array]:
        scale = self.graph.constant(node.input[1])
        if scale is None:
            raise ModelError(f"The scale of {node.name or node.output[0]!r} is not a constant; expected one.")
        if len(node.input) > 2 and node.input[2]:
            zero = self.graph.constant(node.input[2])
            if zero is None:
                raise ModelError(
                    f"The zero point of {node.name or node.output[0]!r} is not a constant; expected one."
                )
        else:
            source = self.graph.constant(node.input[0])
            zero = np.zeros(scale.shape, np.uint8 if source is None else source.dtype)
        if not np.all(scale > 0):
            raise ModelError(
                f"A scale of {node.name or node.output[0]!r} is not positive. Export the model again."
            )
        # One value for the whole tensor is sometimes written as one of rank 1.
        return (scale.reshape(()), zero.reshape(())) if scale.size == 1 else (scale, zero)

    def _find_fused(self) -> set[str]:
        """Return the tensors that stay unrounded: all that reads them leads to a QuantizeLinear."""
        sources = {n for n, v in self._constants.items() if isinstance(v, Real)}
        reached: set[str] = set(sources)
        for node in self._nodes:
            activations = [n for n in node.input if n and n not in self.graph.constants]
            if node.op_type == "DequantizeLinear" or (
                (self._is_integer(node) or node.op_type in _FUSED)
                and activations
                and all(n in reached for n in activations)
            ):
                reached.update(node.output)
        fused: set[str] = set()
        ends: dict[str, bool] = {}
        for node in reversed(self._nodes):
            leads = node.op_type == "QuantizeLinear" or (
                node.op_type in _FUSED and all(ends.get(n, False) and n in reached for n in node.output if n)
            )
            for name in node.input:
                ends[name] = ends.get(name, True) and leads and name not in self.graph.output_names
        for node in self._nodes:
            if node.op_type in _FUSED and all(n in reached and ends.get(n, False) for n in node.output if n):
                fused.update(node.output)
        return fused

    def _is_integer(self, node: NodeProto) -> bool:
        """Whether a product reads integers on both sides."""
        if node.op_type not in _PRODUCTS:
            return False
        for name in node.input[:2]:
            if not isinstance(self._constants.get(name), Real) and not self._is_dequantized(name):
                return False
        return node.op_type != "Gemm" or attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0

    def _is_dequantized(self, name: str) -> bool:
        node = self.graph.producer.get(name)
        while node is not None and node.op_type in MOVING and node.op_type != "Concat":
            node = self.graph.producer.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return False
        scale = self.graph.constant(node.input[1])
        return scale is not None and scale.size == 1

    # ------------------------------------------------------------------------------- execution

    def _execute(self, node: NodeProto, values: Mapping[str, Value]) -> Sequence[Value]:
        try:
            inputs = [values[name] if name else _EMPTY for name in node.input]
        except KeyError as exc:
            raise ModelError(
                f"{node.name!r} reads {exc.args[0]!r}, which nothing computes or feeds."
            ) from exc
        if node.op_type == "QuantizeLinear":
            scale, zero = self._parameters(node)
            axis = attribute(node, "axis", 1)
            return [quantize(inputs[0], scale, zero, axis, self.arithmetic.rounding)]
        if node.op_type == "DequantizeLinear":
            scale, zero = self._parameters(node)
            return [_dequantized(_array(inputs[0], node), scale, zero, attribute(node, "axis", 1))]
        if node.op_type in _PRODUCTS and self._is_integer(node):
            return [self._product(node, inputs)]
        if node.output[0] in self._wide:
            return _fused(node, inputs)
        first = inputs[0] if inputs else _EMPTY
        # A product behind it still wants the integers.
        if (
            node.op_type in MOVING
            and node.op_type != "Concat"
            and isinstance(first, Real)
            and not first.scale.ndim
        ):
            return _fused(node, inputs)
        return self._float(node, [as_float32(value) for value in inputs])

    def _float(self, node: NodeProto, inputs: Sequence[Array]) -> list[Array]:
        brief = self.arithmetic.float_dtype == "bfloat16" and node.op_type not in MOVING
        if brief:
            inputs = [round_bfloat16(value) for value in inputs]
        operation = MOVING.get(node.op_type) or AVERAGING.get(node.op_type) or FLOAT.get(node.op_type)
        if operation is not None and node.domain in ("", "ai.onnx"):
            results = operation(node, inputs)
        elif node.op_type == "Conv" and inputs[0].ndim in (3, 4):
            result = self._convolution(node, inputs[0], inputs[1])
            if len(inputs) > 2 and inputs[2].size:
                result = result + inputs[2].reshape(-1, *[1] * (result.ndim - 2))
            results = [result]
        elif node.op_type == "MatMul":
            results = [np.matmul(inputs[0], inputs[1])]
        else:
            results = fallback(node, inputs, self.graph.opset)
        return [round_bfloat16(value) for value in results] if brief else results

    def _convolution(self, node: NodeProto, x: Array, weight: Array, raw_offset: int | None = None) -> Array:
        """Convolve maps (N, C, H, W), or sequences (N, C, L)."""
        window = window_of(node, weight.shape[2:], x.shape[2:])
        across = self.arithmetic.accumulate == "vpmaddubsw" and not reads_filled_image(self.graph, node)
        maps, kernels, group = as_map(x), as_map(weight), attribute(node, "group", 1)
        return from_map(
            convolve(maps, kernels, window, group, raw_offset, pairs_across_places=across), x.ndim
        )

    def _product(self, node: NodeProto, inputs: Sequence[Value]) -> Real:
        x, w = inputs[0], inputs[1]
        if not isinstance(x, Real) or not isinstance(w, Real) or x.limit is None or w.limit is None:
            raise ModelError(f"{node.name!r} does not read integers though it reads quantized tensors.")
        weight, bound = self._weight_of(node, w, x.limit)
        kind = exact_dtype(bound)
        raw = None
        if self.arithmetic.accumulate != "exact" and node.input[1] in self._constants:
            raw = x.zero_point + (128 if x.signed else 0)
        steps, kernels = x.steps.astype(kind, copy=False), weight.astype(kind, copy=False)
        if node.op_type == "Conv":
            total = self._convolution(node, steps, kernels, raw)
            shape: tuple[int, ...] = (-1, *[1] * (total.ndim - 2))
        else:
            if node.op_type == "Gemm" and attribute(node, "transA", 0):
                steps = steps.T
            total = matmul_pairs(steps, kernels, raw)
            shape = (-1,)
        scale = np.asarray(x.scale * w.scale.reshape(-1 if w.scale.ndim else ()), np.float64)
        if scale.ndim:
            scale = scale.reshape(shape)
        if len(inputs) > 2 and node.input[2]:
            bias = self._bias(inputs[2], scale.reshape(-1), x.scale)
            total = total.astype(np.float64) + (bias.reshape(shape) if bias.ndim == 1 else bias)
        return Real(total, scale)

    def _weight_of(self, node: NodeProto, w: Real, limit: int) -> tuple[Array, float]:
        """Return the second operand as the product wants it, and the accumulator's bound."""
        key = (node.output[0], False)
        if key in self._weights:
            weight, total = self._weights[key]
            return weight, total * limit
        weight = w.steps
        if node.op_type == "Gemm" and attribute(node, "transB", 0):
            weight = weight.T
        if node.op_type == "Conv":
            total = float(np.abs(weight).sum(axis=tuple(range(1, weight.ndim)), dtype=np.float64).max())
        else:
            total = float(np.abs(weight).sum(axis=-2, dtype=np.float64).max())
        if node.input[1] in self._constants:
            kind = exact_dtype(total * limit)
            weight = np.ascontiguousarray(weight, kind)
            self._weights[key] = weight, total
        return weight, total * limit

    def _bias(self, bias: Value, step: Array, x_scale: Array) -> Array:
        """Return the bias in steps of the accumulator."""
        if isinstance(bias, Real):
            given = np.broadcast_to(bias.scale.reshape(-1), step.shape)
            # float32 rounds the product of two scales; the integers are meant for the accumulator itself.
            if np.allclose(given, step, rtol=1e-6, atol=0.0):
                return bias.steps.astype(np.float64)
            return self._rounded(bias.wide().reshape(-1) / step)
        steps = bias.astype(np.float64) / (step if bias.ndim == 1 else step.reshape(-1))
        return self._rounded(steps)

    def _rounded(self, steps: Array) -> Array:
        return np.rint(steps) if self.arithmetic.bias == "int32" else steps


def _array(value: Value, node: NodeProto) -> Array:
    if isinstance(value, Real):
        raise ModelError(f"{node.name!r} dequantizes what is not quantized.")
    return value


def _dequantized(integers: Array, scale: Array, zero: Array, axis: int) -> Real:
    kind = np.float32 if integers.dtype.itemsize < 4 else np.float64
    steps = integers.astype(kind)
    wide = scale.astype(np.float64)
    if scale.ndim:
        shape = [-1 if dim == axis % integers.ndim else 1 for dim in range(integers.ndim)]
        steps -= zero.reshape(shape).astype(kind)
        return Real(steps, wide.reshape(shape), _limit(integers, zero), 0, integers.dtype.kind == "i")
    point = int(zero)
    if point:
        steps -= kind(point)
    return Real(steps, wide, _limit(integers, zero), point, integers.dtype.kind == "i")


def _limit(integers: Array, zero: Array) -> int:
    ends, low, high = np.iinfo(integers.dtype), int(zero.min()), int(zero.max())
    return max(int(ends.max) - low, high - int(ends.min))


def _fused(node: NodeProto, inputs: Sequence[Value]) -> list[Value]:
    """Compute one node without rounding."""
    first = inputs[0]
    if node.op_type in MOVING or node.op_type in AVERAGING:
        if node.op_type == "Concat":
            return [_joined(node, inputs)]
        if not isinstance(first, Real):
            raise ModelError(f"{node.name!r} reads no quantized tensor.")
        rest = [value for value in inputs[1:] if not isinstance(value, Real)]
        if first.scale.ndim:
            first = Real(first.wide(), np.float64(1.0).reshape(()))
        if node.op_type in MOVING:
            return [first.moved(steps) for steps in MOVING[node.op_type](node, [first.steps, *rest])]
        steps = first.steps.astype(np.float64)
        return [Real(result, first.scale) for result in AVERAGING[node.op_type](node, [steps, *rest])]
    if node.op_type == "Relu" and isinstance(first, Real):
        return [Real(np.maximum(first.steps, 0), first.scale)]
    if node.op_type == "Mul" and all(isinstance(value, Real) and value.scale.ndim == 0 for value in inputs):
        left, right = (value for value in inputs if isinstance(value, Real))
        return [Real(np.multiply(left.steps, right.steps, dtype=np.float64), left.scale * right.scale)]
    wide = [value.wide() if isinstance(value, Real) else _widened(value) for value in inputs]
    return [Real(result, np.asarray(1.0)) for result in FLOAT[node.op_type](node, wide)]


def _widened(value: Array) -> Array:
    return value.astype(np.float64) if value.dtype == np.float32 else value


def _joined(node: NodeProto, inputs: Sequence[Value]) -> Real:
    reals = [value for value in inputs if isinstance(value, Real)]
    axis = attribute(node, "axis")
    # Constants of the network, such as the blank frames around a sequence, have no scale.
    alike = len(reals) == len(inputs)
    if alike and all(value.scale.ndim == 0 and value.scale == reals[0].scale for value in reals):
        limits = [value.limit for value in reals]
        bound = None if None in limits else max(limit for limit in limits if limit is not None)
        return Real(np.concatenate([value.steps for value in reals], axis), reals[0].scale, bound)
    wide = [value.wide() if isinstance(value, Real) else _widened(value) for value in inputs]
    return Real(np.concatenate(wide, axis), np.asarray(1.0))


def _last_uses(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> dict[str, int]:
    last = {name: index for index, node in enumerate(nodes) for name in node.input}
    return {name: index for name, index in last.items() if name not in outputs}
