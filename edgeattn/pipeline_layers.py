"""How far quantization moves each tensor inside a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from edgeattn.measure.domain import compare_domains
from edgeattn.onnx_graph import Graph
from edgeattn.onnx_plain import open_plain
from edgeattn.pipeline_deploy import module_of
from edgeattn.quant.plan import Profile, QuantParams, QuantPlan
from edgeattn.report import DomainResult, LayerResult

__all__ = ["domain_result", "layer_results"]

DOMAIN_IMAGES = 48
_LEAST_DOMAIN_IMAGES = 16


def layer_results(
    float_model: ModelProto,
    qdq_model: ModelProto,
    plan: QuantPlan,
    profile: Profile,
    images: NDArray[np.float32] | list[NDArray[np.float32]],
) -> list[LayerResult]:
    """Return the SQNR of every quantized tensor, in graph order.

    Both graphs run on the same images, so that a tensor's figure holds all error from the input on.

    Args:
        float_model: The graph that the plan was applied to, before quantization.
        qdq_model: The same with Q/DQ.
        plan: Names the tensors.
        profile: Of `qdq_model`.
        images: Each (1, C, H, W) or (C, H, W).
    """
    names = [name for name, wanted in plan.activations.items() if wanted.is_quantized(profile)]
    inputs = Graph(float_model).input_names
    inner = [name for name in names if name not in inputs]
    plain = _Runner(float_model, inner)
    quantized = _Runner(_dequantized(qdq_model, inner), [f"{name}.dequantized" for name in inner])
    # Profile s8 stores a folded zero point as 0: what the graph holds there is shifted by it.
    offset = {name: _folded_offset(plan.activations[name].params(profile), profile) for name in inner}
    signal, noise = dict.fromkeys(inner, 0.0), dict.fromkeys(inner, 0.0)
    for image in images:
        batch = image if image.ndim == 4 else image[None]
        for name, wanted, stored in zip(inner, plain(batch), quantized(batch), strict=True):
            got = stored - offset[name]
            signal[name] += float(np.square(wanted, dtype=np.float64).sum())
            noise[name] += float(np.square(wanted - got, dtype=np.float64).sum())
    return [
        LayerResult(name=name, module=module_of(name), sqnr_db=_decibel(signal[name], noise[name]))
        for name in inner
    ]


def domain_result(
    float_model: ModelProto,
    plan: QuantPlan,
    calibration: Sequence[NDArray[np.float32]],
    evaluation: NDArray[np.float32],
) -> DomainResult | None:
    """Compare calibration and evaluation images by how large the quantized tensors become; None for too few.

    Args:
        float_model: Canonical fp32 graph.
        plan: Names the tensors.
        calibration: Images (1, C, H, W).
        evaluation: Images (N, C, H, W).
    """
    if min(len(calibration), len(evaluation)) < _LEAST_DOMAIN_IMAGES:
        return None
    inputs = Graph(float_model).input_names
    names = [name for name in plan.activations if name not in inputs]
    run = _Runner(float_model, names)

    def extents(images: Sequence[NDArray[np.float32]] | NDArray[np.float32]) -> NDArray[np.float64]:
        chosen = np.linspace(0, len(images) - 1, min(len(images), DOMAIN_IMAGES)).astype(int)
        batches = (images[index] for index in chosen)
        rows = [run(image if image.ndim == 4 else image[None]) for image in batches]
        return np.array([[float(np.abs(value).max()) for value in row] for row in rows])

    found = compare_domains(names, extents(calibration), extents(evaluation))
    return DomainResult(
        distance=found.distance,
        p_value=found.p_value,
        calibration_images=found.counts[0],
        evaluation_images=found.counts[1],
        is_unlike=found.is_unlike,
        tensors=[name for name, _ in found.tensors],
    )


def _dequantized(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return the graph with the values of tensors whose integers are padded before anything reads them."""
    graph = Graph(model)
    for name in names:
        if f"{name}.dequantized" not in graph.producer:
            quantize = graph.producer[f"{name}.quantized"]
            inputs = [quantize.output[0], *quantize.input[1:]]
            graph.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.dequantized"]))
    return graph.to_model()


def _folded_offset(params: QuantParams, profile: Profile) -> float:
    return params.zero_point * params.scale if profile == "s8" else 0.0


def _decibel(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


class _Runner:
    def __init__(self, model: ModelProto, outputs: list[str]) -> None:
        graph = Graph(model)
        # Plain: an optimized graph would not compute these tensors at all.
        self._session = open_plain(graph.to_model(outputs), "the comparison of layers")
        self._input = graph.input_names[0]
        self._outputs = outputs

    def __call__(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        values: list[NDArray[np.float32]] = self._session.run(self._outputs, {self._input: batch})
        return values
