"""Runtimes that compute swishes in the convolution before get them back from gates by channel."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from lowering_graphs import lower, operators, run, run_openvino
from onnx import ModelProto, TensorProto, helper
from quant_networks import pictures, swish_block

from edgeattn.export.qdq import emit_qdq
from edgeattn.lower.base import LoweringError
from edgeattn.lower.passes import PASSES
from edgeattn.lower.whole_swishes import WholeSwishes
from edgeattn.onnx_graph import Graph
from edgeattn.quant.channel_equalization import equalized_plan
from edgeattn.quant.channel_gates import with_channel_gates
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import PROFILES, QuantPlan

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


KINDS = pytest.mark.parametrize("is_hard", [True, False], ids=["hard swish", "swish"])


@functools.cache
def quantized(profile: Any, seed: int = 0, is_hard: bool = True) -> ModelProto:
    """A block whose first swish has a gate by channel, with factors of 1 to 1/64."""
    model = with_channel_gates(swish_block(seed, is_hard=is_hard))
    assert model is not None
    empty = QuantPlan(method="ptq", activations={}, weights={})
    plan = equalized_plan(empty, Graph(model), place_quantizers(model), pictures(8), "minmax", PtqConfig())
    assert plan is not None
    return emit_qdq(model, plan, profile)


def distance_db(wanted: Any, got: Any) -> float:
    return 10 * float(np.log10(np.square(wanted).sum() / max(float(np.square(wanted - got).sum()), 1e-30)))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("seed", [0, 1, 2])
@KINDS
def test_the_gate_becomes_a_swish_again_and_is_nearer_to_float(
    profile: str, seed: int, is_hard: bool
) -> None:
    model = quantized(profile, seed, is_hard)
    lowered, changed = lower(model, WholeSwishes())
    assert changed == ["whole-swishes"]
    assert operators(lowered).count("HardSwish" if is_hard else "Sigmoid") == 2
    # What map and gate were rounded to is gone with the kernels; a swish without factors goes the same way.
    assert operators(model).count("Conv") - operators(lowered).count("Conv") == 1
    gone = 2 if is_hard else 3 + 2
    assert operators(model).count("QuantizeLinear") - operators(lowered).count("QuantizeLinear") == gone
    images = [{"input": image} for image in pictures(6, seed=99)]
    floats = np.concatenate([run(swish_block(seed, is_hard=is_hard), image) for image in images])
    before, after = (np.concatenate([run(item, image) for image in images]) for item in (model, lowered))
    assert distance_db(before, after) > 20
    assert distance_db(floats, after) > distance_db(floats, before) - 1


@KINDS
@pytest.mark.parametrize("profile", PROFILES)
def test_openvino_computes_the_graph_that_it_is_given(profile: str, is_hard: bool) -> None:
    lowered, _ = lower(quantized(profile, is_hard=is_hard), WholeSwishes())
    for image in pictures(3, seed=99):
        wanted = run(lowered, {"input": image})
        assert distance_db(wanted, run_openvino(lowered, {"input": image})) > 30


@KINDS
@pytest.mark.parametrize("change", ["bias", "negative weight", "range", "another map"])
def test_what_is_no_swish_stays(change: str, is_hard: bool) -> None:
    graph = Graph(quantized("u8", is_hard=is_hard))
    conv = next(node for node in graph.nodes if node.op_type == "Conv" and "swish.weight" in node.input[1])
    weight = graph.producer[conv.input[1]]
    product = next(node for node in graph.nodes if node.output[0] == "swish")
    gate = next(name for name in product.input if "gate" in name or "sigmoid" in name)
    quantize = graph.producer[graph.producer[gate].input[0]]
    if change == "bias":
        graph.constants[conv.input[2]] = graph.constants[conv.input[2]] + np.float32(0.01)
    elif change == "negative weight":
        graph.constants[weight.input[0]] = -graph.constants[weight.input[0]]
    elif change == "range":
        graph.constants[quantize.input[1]] = graph.constants[quantize.input[1]] * np.float32(0.9)
    else:
        conv.input[0] = next(
            node for node in graph.nodes if node.op_type == "DequantizeLinear" and node is not weight
        ).output[0]
    graph.reindex()
    passes = WholeSwishes()
    # The other swish has no factors.
    assert passes(graph) is not is_hard
    assert passes.ensures(graph) == ""
    assert [node.SerializeToString() for node in graph.nodes if node.output[0] == "swish"] == [
        product.SerializeToString()
    ]


def test_a_gate_that_is_left_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.lower.whole_swishes._rewrite", lambda *_: None)
    with pytest.raises(LoweringError, match="still a product with its own gate"):
        lower(quantized("u8"), WholeSwishes())


@pytest.mark.parametrize("what", ["map", "integers", "gate"])
def test_a_swish_of_which_others_read_a_part_stays(what: str) -> None:
    graph = Graph(quantized("u8", is_hard=False))
    sigmoid = next(node for node in graph.nodes if node.op_type == "Sigmoid" and "swish2" in node.output[0])
    product = next(node for node in graph.nodes if node.output[0] == "swish2")
    integers = graph.producer[sigmoid.input[0]].input[0]
    gate = next(name for name in product.input if name != sigmoid.input[0])
    read = {"map": graph.producer[integers].input[0], "integers": sigmoid.input[0], "gate": gate}[what]
    graph.nodes.append(helper.make_node("Relu", [read], ["other"], "other"))
    graph.outputs.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, None))
    graph.reindex()
    WholeSwishes()(graph)
    assert any(node is product for node in graph.nodes)


def test_targets_that_fuse_hard_swishes_get_them_whole() -> None:
    having = {
        target for target, passes in PASSES.items() if "whole-swishes" in [item.name for item in passes]
    }
    assert having == {"openvino-cpu", "tensorrt", "tensorrt-rtx", "jetson-ssh"}
