"""How far quantization moves each tensor inside a network."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeattn.extras import require
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_deploy import module_of
from edgeattn.quant.plan import Profile, QuantParams, QuantPlan
from edgeattn.report import LayerResult

__all__ = ["layer_results"]


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
    quantized = _Runner(qdq_model, [f"{name}.dequantized" for name in inner])
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


def _folded_offset(params: QuantParams, profile: Profile) -> float:
    return params.zero_point * params.scale if profile == "s8" else 0.0


def _decibel(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


class _Runner:
    def __init__(self, model: ModelProto, outputs: list[str]) -> None:
        ort = require("onnxruntime", purpose="the comparison of layers")
        graph = Graph(model)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        # As the graph says: an optimized one would not compute these tensors at all.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(
            graph.to_model(outputs).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._input = graph.input_names[0]
        self._outputs = outputs

    def __call__(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        values: list[NDArray[np.float32]] = self._session.run(self._outputs, {self._input: batch})
        return values
