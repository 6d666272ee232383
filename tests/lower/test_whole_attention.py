"""Attention over places keeps its scores in float: nearer to the float network, and each runtime's fast kernels for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from lowering_graphs import Array, Builder, lower, operators, operators_after_optimization, run, run_openvino

from edgeattn.lower.passes import passes_for
from edgeattn.lower.whole_attention import WholeAttention
from edgeattn.onnx_graph import Graph, mark_clip

CHANNELS, SIZE = 8, 4
STEP = 0.004
FACTORS = {"scaled": ("Mul", 0.5), "divided": ("Div", 2.0), "turned": ("Mul", -0.5)}


class Attention(Builder):
    """Writes the nodes with Q/DQ pairs, or without any."""

    def __init__(self, *, floats: bool) -> None:
        super().__init__()
        self.floats = floats

    def pair(self, tensor: str, scale: float, zero_point: int, dtype: Any = np.uint8) -> str:
        return tensor if self.floats else super().pair(tensor, scale, zero_point, dtype)

    def tokens(self, x: str, seed: int, places: int, perm: list[int]) -> str:
        integers = np.random.default_rng(seed).integers(-100, 101, (SIZE, CHANNELS, 1, 1))
        y = self.add("Conv", x, self.weight(integers, np.full(SIZE, 0.006)))
        y = self.add("Reshape", self.pair(y, 0.05, 128), self.constant(np.asarray([1, 1, SIZE, places])))
        return self.pair(self.add("Transpose", y, perm=perm), 0.05, 128)


def attention_model(
    kind: str = "scaled",
    *,
    side: int = 8,
    floats: bool = False,
    twice: bool = False,
    used: bool = True,
    axis: int = -1,
) -> onnx.ModelProto:
    """Of a map with a pair around everything, as plans have it."""
    b, places = Attention(floats=floats), side * side
    x = b.pair("x", 0.03, 128)
    query = b.tokens(x, 0, places, [0, 1, 3, 2])
    key, value = b.tokens(x, 1, places, [0, 1, 2, 3]), b.tokens(x, 2, places, [0, 1, 3, 2])
    scores = b.add("MatMul", query, key)
    if kind in FACTORS:
        op, factor = FACTORS[kind]
        scores = b.add(op, scores, b.constant(np.float32(factor)))
    if kind == "biased":
        bias = np.random.default_rng(3).standard_normal((1, 1, places, places)).astype(np.float32)
        scores = b.add("Add", b.pair(scores, 0.1, 128), b.constant(bias))
    scores = b.pair(scores, 0.1, 128)
    weights = b.pair(b.add("Softmax", scores, axis=axis), 0.8 / 255, 0)
    mixed = b.add("MatMul", weights, value) if used else b.add("ReduceMax", weights, axes=[3])
    if twice:
        mixed = b.add("Add", mixed, b.add("ReduceMean", scores, axes=[3], keepdims=1))
    return b.model({"x": (1, CHANNELS, side, side)}, b.pair(mixed, STEP, 128))


def image(side: int = 8) -> dict[str, Array]:
    return {"x": np.random.default_rng(5).standard_normal((1, CHANNELS, side, side)).astype(np.float32)}


def distance_db(wanted: Array, got: Array) -> float:
    return 10 * float(np.log10(np.square(wanted).sum() / max(float(np.square(wanted - got).sum()), 1e-30)))


OPENVINO, RUNTIME = WholeAttention(), WholeAttention(in_one=False)
SPELLINGS = pytest.mark.parametrize("spelling", [OPENVINO, RUNTIME], ids=["openvino", "onnx runtime"])
KINDS = ("plain", "scaled", "divided", "turned", "biased")


@SPELLINGS
@pytest.mark.parametrize("kind", KINDS)
def test_fewer_roundings_are_nearer_to_the_float_network(kind: str, spelling: WholeAttention) -> None:
    model, floats = attention_model(kind), run(attention_model(kind, floats=True), image())
    lowered, changed = lower(model, spelling)
    assert changed == ["whole-attention"]
    before, after = run(model, image()), run(lowered, image())
    assert distance_db(before, after) > 20
    assert distance_db(floats, after) > distance_db(floats, before) - 0.5
    gone = (2 if kind == "biased" else 1) + spelling.in_one
    assert operators(model).count("QuantizeLinear") - operators(lowered).count("QuantizeLinear") == gone


@pytest.mark.parametrize("kind", KINDS)
def test_openvino_computes_the_graph_that_it_is_given(kind: str) -> None:
    lowered, changed = lower(attention_model(kind), *passes_for("openvino-cpu"))
    assert "whole-attention" in changed
    assert np.abs(run_openvino(lowered, image()) - run(lowered, image())).max() < 1.01 * STEP


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_multiplies_integers_to_float_scores(kind: str, tmp_path: Path) -> None:
    model = attention_model(kind)
    lowered, changed = lower(model, *passes_for("ort-cpu"))
    assert "whole-attention" in changed
    executed = operators_after_optimization(lowered, tmp_path)
    assert executed.count("MatMulIntegerToFloat") == executed.count("Softmax") == 1
    assert "QLinearSoftmax" not in executed
    assert ("Mul" in executed or "Div" in executed) == (kind == "turned")
    assert np.abs(run(lowered, image(), optimized=True) - run(lowered, image())).max() < 1.01 * STEP


@pytest.mark.parametrize(
    "model",
    [
        attention_model(side=5),
        attention_model(twice=True),
        attention_model(used=False),
        attention_model(floats=True),
    ],
    ids=["few scores", "scores that others read", "no product behind", "no pairs"],
)
@SPELLINGS
def test_what_is_no_attention_between_pairs_stays(model: onnx.ModelProto, spelling: WholeAttention) -> None:
    assert lower(model, spelling)[1] == []


@SPELLINGS
def test_a_pair_that_stands_for_a_clip_stays(spelling: WholeAttention) -> None:
    model = attention_model("plain")
    graph = Graph(model)
    softmax = next(node for node in graph.nodes if node.op_type == "Softmax")
    mark_clip(graph.producer[graph.producer[softmax.input[0]].input[0]])
    assert lower(graph.to_model(), spelling)[1] == []


def test_softmaxes_along_another_axis_stay_in_onnx_runtime(tmp_path: Path) -> None:
    """It transposes float scores, four times the bytes."""
    lowered, changed = lower(attention_model(axis=2), *passes_for("ort-cpu"))
    assert not {"whole-attention", "part-softmaxes"} & set(changed)
    assert "QLinearSoftmax" in operators_after_optimization(lowered, tmp_path)
    assert "whole-attention" in lower(attention_model(axis=3), *passes_for("ort-cpu"))[1]
    assert "whole-attention" in lower(attention_model(axis=2), *passes_for("openvino-cpu"))[1]


def test_a_kernel_for_few_scores_is_left_to_onnx_runtime(tmp_path: Path) -> None:
    lowered, _ = lower(attention_model(side=5), *passes_for("ort-cpu"))
    assert "QLinearSoftmax" in operators_after_optimization(lowered, tmp_path)
