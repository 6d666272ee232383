"""NNCF's post-training quantization, read into the parts of a `QuantPlan`.

NNCF (https://github.com/openvinotoolkit/nncf) decides ranges and corrects biases; what it decides is
taken over tensor by tensor. Where it gives every channel before a depthwise convolution a range of its
own, the channels are scaled to one common range instead, which comes to the same and which every runtime
computes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeattn.extras import require
from edgeattn.onnx_graph import Graph
from edgeattn.quant.equalize import LARGEST_GAIN, find_groups

__all__ = ["NncfDecisions", "quantize_with_nncf", "quiet_nncf"]


@dataclasses.dataclass(frozen=True)
class NncfDecisions:
    """What NNCF found for one float graph.

    Attributes:
        ranges: By activation, (low, high) of its grid; after `channel_scales`.
        channel_scales: By group of tensors (`edgeattn.quant.equalize`), what each channel is divided by.
        bias_shift: By bias, what its correction adds; after `channel_scales`.
    """

    ranges: dict[str, tuple[float, float]]
    channel_scales: dict[str, list[float]]
    bias_shift: dict[str, list[float]]


@contextlib.contextmanager
def quiet_nncf() -> Iterator[None]:
    """Keep NNCF from printing: progress is shown by our own bars."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def quantize_with_nncf(
    model: ModelProto,
    images: Sequence[NDArray[np.float32]],
    *,
    bias_correction: bool = True,
    fixed: frozenset[str] = frozenset(),
) -> NncfDecisions:
    """Run ``nncf.quantize`` with asymmetric activations.

    Args:
        model: Canonical fp32 graph with one input; not changed.
        images: Arrays (1, C, H, W); all are used.
        bias_correction: Whether to run NNCF's fast bias correction.
        fixed: Weights and biases that no scaling of channels may change.

    Raises:
        MissingExtraError: If NNCF is not installed.
    """
    nncf = require("nncf", purpose="post-training quantization by NNCF")
    copy = ModelProto()
    copy.CopyFrom(model)
    name = model.graph.input[0].name
    with quiet_nncf():
        quantized = nncf.quantize(
            copy,
            nncf.Dataset(images, lambda image: {name: image}),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(images),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                disable_bias_correction=not bias_correction
            ),
        )
    return _decisions(Graph(model), Graph(quantized), fixed, corrected=bias_correction)


def _decisions(graph: Graph, quantized: Graph, fixed: frozenset[str], *, corrected: bool) -> NncfDecisions:
    ranges: dict[str, tuple[float, float]] = {}
    scales: dict[str, list[float]] = {}
    factors: dict[str, NDArray[np.float64]] = {}
    group_of = {tensor: group for group in find_groups(graph) for tensor in group.tensors}
    for node in quantized.nodes:
        tensor = node.input[0]
        if node.op_type != "QuantizeLinear" or tensor in quantized.constants:
            continue
        low, high = _bounds(quantized, node.input[1], node.input[2])
        group = group_of.get(tensor)
        if low.size > 1 and group is not None and group.is_free and not group.constants & fixed:
            factor = _relative(np.maximum(-low, high))
            scales[group.name] = factor.tolist()
            factors |= {bias: factor for _, bias in group.writers if bias}
            low, high = low / factor, high / factor
        ranges[tensor] = min(float(low.min()), 0.0), max(float(high.max()), 0.0)
    return NncfDecisions(ranges, scales, _corrections(graph, quantized, factors) if corrected else {})


def _bounds(quantized: Graph, scale: str, zero_point: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the smallest and the largest value of a grid, per channel or one."""
    steps = np.atleast_1d(quantized.constants[scale]).astype(np.float64)
    zero = np.atleast_1d(quantized.constants[zero_point])
    limits = np.iinfo(zero.dtype)
    return (limits.min - zero.astype(np.float64)) * steps, (limits.max - zero.astype(np.float64)) * steps


def _relative(extent: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(extent / max(float(extent.max()), 1e-12), 1 / LARGEST_GAIN)


def _corrections(
    graph: Graph, quantized: Graph, factors: dict[str, NDArray[np.float64]]
) -> dict[str, list[float]]:
    """Return what NNCF's bias correction added to the biases, layers matched by what they write."""
    shifts: dict[str, list[float]] = {}
    for node in graph.nodes:
        other = quantized.producer.get(node.output[0])
        if other is None or other.op_type != node.op_type or min(len(node.input), len(other.input)) < 3:
            continue
        before, after = graph.constants.get(node.input[2]), quantized.constants.get(other.input[2])
        if before is None or after is None or before.ndim != 1 or before.shape != after.shape:
            continue
        if len(graph.consumers[node.input[2]]) == 1:
            shift = (after.astype(np.float64) - before) / factors.get(node.input[2], 1.0)
            if shift.any():
                shifts[node.input[2]] = shift.tolist()
    return shifts
