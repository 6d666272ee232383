"""Means keep grids that kernels can compute."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto
from quant_networks import SIZE, Builder

from edgeattn.export.qdq import emit_qdq
from edgeattn.onnx_graph import Graph
from edgeattn.quant.config import RANGES_ONLY
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import PROFILES, QuantPlan
from edgeattn.quant.pool_grids import coarsen_pools
from edgeattn.quant.ptq import fit_to_kernels, make_plan

POOLS = ["AveragePool", "GlobalAveragePool"]


def _network(pool: str) -> ModelProto:
    builder = Builder(2)
    builder.conv("input", "first", 3, 8, kernel=3)
    builder.node("Relu", ["first"], "activated")
    kernel = {"kernel_shape": [SIZE, SIZE]} if pool == "AveragePool" else {}
    builder.node(pool, ["activated"], "mean", **kernel)
    builder.conv("mean", "last", 8, 4)
    return builder.model("last", (1, 4, 1, 1))


def _images() -> list[NDArray[np.float32]]:
    random = np.random.default_rng(0)
    return [random.normal(size=(1, 3, SIZE, SIZE)).astype(np.float32) for _ in range(8)]


def _with_finer_mean(plan: QuantPlan, factor: float) -> QuantPlan:
    mean = plan.activations["mean"].times(factor)
    return plan.model_copy(update={"activations": {**plan.activations, "mean": mean}})


def _run(model: ModelProto) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"input": _images()[0]})[0]
    return result


@pytest.mark.parametrize("pool", POOLS)
def test_a_mean_too_fine_for_onnx_runtime_becomes_one_that_runs(pool: str) -> None:
    model = _network(pool)
    graph, place = Graph(model), place_quantizers(model)
    plan = make_plan(model, _images(), RANGES_ONLY)
    learned = _with_finer_mean(plan, 1e-6)
    with pytest.raises(Exception, match="out of computation range"):
        _run(emit_qdq(model, learned, "u8"))
    fitted = fit_to_kernels(learned, graph, place, _images(), RANGES_ONLY)
    for profile in PROFILES:
        step = fitted.activations["activated"].params(profile).scale / SIZE**2
        assert step / 128 <= fitted.activations["mean"].params(profile).scale <= step / 32
    assert np.isfinite(_run(emit_qdq(model, fitted, "u8"))).all()


@pytest.mark.parametrize("pool", POOLS)
def test_usual_means_stay_and_exact_steps_stay_exact(pool: str) -> None:
    model = _network(pool)
    graph, place = Graph(model), place_quantizers(model)
    plan = make_plan(model, _images(), RANGES_ONLY)
    assert coarsen_pools(plan, graph, place) == plan
    fine = _with_finer_mean(plan, 1e-6)
    changed = coarsen_pools(fine, graph, place).activations
    ratio = changed["mean"].limit / fine.activations["mean"].limit
    assert ratio > 1
    assert np.log2(ratio) == round(np.log2(ratio))
    assert {**changed, "mean": fine.activations["mean"]} == fine.activations
