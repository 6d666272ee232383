"""Bias correction: cancel the mean error that quantization leaves in each output channel.

Sequential form (Nagel et al., arXiv 1906.04721, section 4.2): layer by layer in the quantized graph,
with everything before a layer already quantized and corrected, the difference of channel means to the
float graph is added to the layer's bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeattn.onnx_graph import Graph
from edgeattn.quant.segments import SegmentRunner

__all__ = ["correct_biases"]


def correct_biases(
    float_model: ModelProto,
    quantized_model: ModelProto,
    images: Sequence[NDArray[np.float32]],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Return what to add to each bias of the quantized graph.

    Args:
        float_model: Canonical fp32 graph that the quantized one was emitted from.
        quantized_model: QDQ graph with the same constants' names, uncorrected.
        images: Arrays (1, C, H, W).
        progress: Called with (done, total) layers.
    """
    layers = _layers(Graph(float_model))
    quantized = _layers(Graph(quantized_model), suffix=".dequantized")
    shared = [weight for weight in layers if weight in quantized]
    targets = _channel_means(float_model, {weight: layers[weight][0] for weight in shared}, images)
    tensor_of = {quantized[weight][0]: weight for weight in shared}
    runner = SegmentRunner(quantized_model, images)
    shifts: dict[str, list[float]] = {}
    for done, tensor in enumerate(runner.segments(list(tensor_of)), start=1):
        weight = tensor_of[tensor]
        mean = np.mean([_channel_mean(values[tensor]) for values in runner.values], axis=0)
        shift = (targets[weight] - mean).astype(np.float32)
        for values in runner.values:
            value = values[tensor]
            values[tensor] = value + shift.reshape((1, -1) + (1,) * (value.ndim - 2))
        shifts[quantized[weight][1]] = shift.tolist()
        if progress:
            progress(done, len(shared))
    return shifts


def _layers(graph: Graph, suffix: str = "") -> dict[str, tuple[str, str]]:
    """Return weight -> (output tensor, bias) of convolutions and Gemms that have a bias."""
    return {
        node.input[1].removesuffix(suffix): (node.output[0], node.input[2])
        for node in graph.nodes
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and node.input[1].endswith(suffix)
    }


def _channel_means(
    model: ModelProto, outputs: dict[str, str], images: Sequence[NDArray[np.float32]]
) -> dict[str, NDArray[np.float64]]:
    runner = SegmentRunner(model, images)
    weight_of = {tensor: weight for weight, tensor in outputs.items()}
    return {
        weight_of[tensor]: np.mean([_channel_mean(values[tensor]) for values in runner.values], axis=0)
        for tensor in runner.segments(list(weight_of))
    }


def _channel_mean(value: NDArray[np.generic]) -> NDArray[np.float64]:
    axes = tuple(axis for axis in range(value.ndim) if axis != 1)
    mean: NDArray[np.float64] = value.astype(np.float64).mean(axis=axes)
    return mean
