"""Cutting a network for DLA by the published tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from attention_networks import planned, quantized
from onnx import TensorProto, helper, numpy_helper

from edgeattn.attention import attentions
from edgeattn.lint import choose_for_dla, plan_dla
from edgeattn.lint.base import View
from edgeattn.lint.dla_support import why_not_dla
from edgeattn.onnx_graph import Graph


def chain(*steps: tuple[str, dict[str, Any]], shape: Sequence[int] = (1, 4, 16, 16)) -> Graph:
    """Return operations one behind the other; a Conv gets a weight of its own."""
    nodes, constants, x = [], [], "x"
    for index, (kind, attributes) in enumerate(steps):
        inputs = [x]
        if kind in ("Conv", "ConvTranspose"):
            kernel = attributes.get("kernel_shape", [1, 1])
            channels = 4 // attributes.get("group", 1)
            weight = numpy_helper.from_array(np.ones((4, channels, *kernel), np.float32), f"w{index}")
            constants.append(weight)
            inputs.append(weight.name)
        x = f"{kind}{index}"
        nodes.append(helper.make_node(kind, inputs, [x], name=x, **attributes))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return Graph(onnx.shape_inference.infer_shapes(model))


@pytest.mark.parametrize(
    ("kind", "attributes", "why"),
    [
        ("Conv", {"kernel_shape": [32, 1], "pads": [16, 0, 15, 0]}, ""),
        ("Conv", {"kernel_shape": [33, 1], "pads": [16, 0, 16, 0]}, "kernel"),
        ("Conv", {"kernel_shape": [1, 1], "strides": [9, 9]}, "stride"),
        ("ConvTranspose", {"kernel_shape": [2, 2], "strides": [2, 2]}, ""),
        ("AveragePool", {"kernel_shape": [8, 8], "strides": [8, 8]}, ""),
        ("AveragePool", {"kernel_shape": [16, 1], "strides": [16, 1]}, "window"),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4}, "padding"),
        ("GlobalAveragePool", {}, "reductions"),
        ("ReduceMean", {"axes": [1]}, "reductions"),
        ("Sigmoid", {}, ""),
        ("HardSwish", {}, "table"),
        ("Erf", {}, "table"),
    ],
)
def test_the_table_of_support(kind: str, attributes: dict[str, Any], why: str) -> None:
    graph = chain((kind, attributes))
    reason = why_not_dla(View(graph), graph.nodes[0])
    assert (why in reason) if why else reason == ""


@pytest.mark.parametrize(
    ("sizes", "why"),
    [((1, 8, 16, 8), ""), ((2, 2, 16, 16), "batch of 2 from 1"), ((1, 4, 256), "only 4-D"), ((1, 1024), "")],
)
def test_a_reshape_keeps_the_batch_and_makes_a_map_or_a_vector(sizes: tuple[int, ...], why: str) -> None:
    graph = chain(("Relu", {}))
    graph.constants["sizes"] = np.asarray(sizes, np.int64)
    graph.nodes.append(helper.make_node("Reshape", ["Relu0", "sizes"], ["y"], name="y"))
    graph.outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)]
    graph.reindex()
    reason = why_not_dla(View(graph), graph.nodes[-1])
    assert (why in reason) if why else reason == ""


def test_an_operation_in_the_middle_cuts_a_network_in_two() -> None:
    plan = plan_dla(chain(("Conv", {}), ("Relu", {}), ("Erf", {}), ("Conv", {})))
    assert [part.device for part in plan.parts] == ["dla", "gpu", "dla"]
    assert (plan.loadables, plan.gpu_parts, plan.on_dla, plan.operations) == (2, 1, 3, 4)
    assert plan.parts[1].reasons == {"Erf: not in the table of supported operators": 1}


def test_a_branch_round_a_fallback_joins_no_loadable_in_front_and_behind() -> None:
    """One loadable with both ends would have to wait for itself."""
    graph = chain(("Conv", {}), ("Erf", {}), ("Relu", {}))
    graph.nodes.append(helper.make_node("Add", ["Conv0", "Relu2"], ["sum"], name="sum"))
    graph.outputs = [helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)]
    graph.reindex()
    plan = plan_dla(graph)
    assert [part.nodes for part in plan.parts if part.device == "dla"] == [("Conv0",), ("Relu2", "sum")]


def test_more_than_sixteen_loadables_do_not_fit() -> None:
    steps = [("Conv", {}), ("Erf", {})]
    assert plan_dla(chain(*steps * 16)).fits
    assert not plan_dla(chain(*steps * 17)).fits


@pytest.mark.parametrize("kind", ["none", "eca", "se"])
def test_channel_gates_run_on_dla_alone(kind: str) -> None:
    plan = plan_dla(Graph(quantized(kind)), respelled=True)
    assert (plan.loadables, plan.gpu_parts) == (1, 0)
    if kind != "none":
        assert plan_dla(Graph(quantized(kind))).gpu_parts > 0


@pytest.mark.parametrize("kind", ["coord", "triplet", "cbam"])
def test_spatial_gates_fall_back_and_the_plan_says_why(kind: str) -> None:
    plan = plan_dla(Graph(quantized(kind)), respelled=True)
    assert plan.gpu_parts > 0
    said = " ".join(reason for part in plan.parts for reason in part.reasons)
    assert "broadcasts" in said or "reductions" in said


def test_the_form_with_the_fewest_cuts_is_chosen() -> None:
    forms = attentions.get("eca").edge_forms
    graphs = {form: Graph(planned("eca", form=form)[0]) for form in forms}
    name, plans = choose_for_dla(graphs)
    assert name.startswith("banded_conv")
    assert plans[name].gpu_parts == 0
    assert set(plans) == set(forms)
