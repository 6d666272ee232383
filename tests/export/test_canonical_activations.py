"""H-sigmoid and h-swish are found as people write them, and nothing else is taken for them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeattn.export.canonical import canonicalize
from edgeattn.export.qdq import emit_qdq
from edgeattn.lower import lower_model
from edgeattn.onnx_graph import Graph
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.ptq import make_plan
from edgeattn.targets.reference import make_program

Step = tuple[str, list[str], str]

SUM: Step = ("Add", ["x", "3"], "shifted")
CLIP: Step = ("Clip", ["shifted", "0", "6"], "clipped")
X_SIZE = (1, 4, 5, 6)


def model(*steps: Step, opset: int = 17) -> onnx.ModelProto:
    """Return a graph of these steps from x to y; inputs that are numbers are constants."""
    names = {name for _, inputs, _ in steps for name in inputs if name.replace(".", "").isdigit()}
    constants = [numpy_helper.from_array(np.asarray(float(name), np.float32), name) for name in sorted(names)]
    if "1/6" in {name for _, inputs, _ in steps for name in inputs}:
        constants.append(numpy_helper.from_array(np.asarray([1 / 6], np.float32), "1/6"))
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [result]) for kind, inputs, result in steps],
        "written",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X_SIZE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, X_SIZE)],
        constants,
    )
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    result.ir_version = 8
    return result


def kinds(nodes: list[NodeProto]) -> list[str]:
    return [node.op_type for node in nodes]


def answer(written: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


SPELLINGS: dict[str, tuple[list[Step], str]] = {
    "quotient then product": (
        [SUM, CLIP, ("Div", ["clipped", "6"], "gate"), ("Mul", ["x", "gate"], "y")],
        "HardSwish",
    ),
    "product then quotient": (
        [SUM, CLIP, ("Mul", ["clipped", "x"], "product"), ("Div", ["product", "6"], "y")],
        "HardSwish",
    ),
    "products throughout": (
        [
            ("Add", ["3", "x"], "shifted"),
            CLIP,
            ("Mul", ["1/6", "clipped"], "gate"),
            ("Mul", ["gate", "x"], "y"),
        ],
        "HardSwish",
    ),
    "quotient alone": ([SUM, CLIP, ("Div", ["clipped", "6"], "y")], "HardSigmoid"),
    "steeper": (
        [
            ("Add", ["x", "1"], "shifted"),
            ("Clip", ["shifted", "0", "2"], "clipped"),
            ("Div", ["clipped", "2"], "y"),
        ],
        "HardSigmoid",
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_written_out_activations_become_one_operation(spelling: str) -> None:
    steps, expected = SPELLINGS[spelling]
    written = model(*steps)
    graph = Graph(written)
    canonicalize(graph)
    assert kinds(graph.nodes) == [expected]
    assert graph.nodes[0].name == "y"
    x = 4 * np.random.default_rng(0).standard_normal(X_SIZE).astype(np.float32)
    np.testing.assert_allclose(answer(graph.to_model(), x), answer(written, x), atol=1e-5)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([SUM, CLIP, ("Mul", ["x", "clipped"], "y")], id="not divided"),
        pytest.param([SUM, CLIP, ("Div", ["clipped", "3"], "y")], id="reaches 2"),
        pytest.param([SUM, CLIP, ("Div", ["6", "clipped"], "y")], id="divides"),
        pytest.param(
            [("Add", ["x", "2"], "shifted"), CLIP, ("Mul", ["x", "clipped"], "p"), ("Div", ["p", "6"], "y")],
            id="another offset",
        ),
        pytest.param(
            [("Neg", ["x"], "z"), SUM, CLIP, ("Mul", ["z", "clipped"], "p"), ("Div", ["p", "6"], "y")],
            id="another map",
        ),
        pytest.param(
            [SUM, CLIP, ("Div", ["clipped", "6"], "gate"), ("Add", ["clipped", "gate"], "y")],
            id="clip is read",
        ),
        pytest.param(
            [SUM, CLIP, ("Div", ["clipped", "6"], "gate"), ("Add", ["shifted", "gate"], "y")],
            id="sum is read",
        ),
    ],
)
def test_what_is_something_else_stays(steps: list[Step]) -> None:
    written = model(*steps)
    graph = Graph(written)
    canonicalize(graph)
    assert not {"HardSigmoid", "HardSwish"} & set(kinds(graph.nodes))
    assert len(graph.nodes) == len(steps)


def test_a_number_that_makes_a_map_of_a_vector_is_not_lost() -> None:
    written = model(SUM, CLIP, ("Div", ["clipped", "6"], "y"))
    written.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 5)))
    written.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 1, 4, 5)))
    for item in written.graph.initializer:
        if item.name == "6":
            item.dims[:] = [1, 1, 1, 1]
    # A clip takes plain numbers.
    written.graph.initializer.append(numpy_helper.from_array(np.float32(6), "high"))
    written.graph.node[1].input[2] = "high"
    graph = Graph(written)
    canonicalize(graph)
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    assert answer(graph.to_model(), x).shape == (1, 1, 4, 5)


def test_old_opsets_have_no_h_swish() -> None:
    graph = Graph(model(SUM, CLIP, ("Div", ["clipped", "6"], "y"), opset=13))
    canonicalize(graph)
    assert kinds(graph.nodes) == ["Add", "Clip", "Div"]


def convolved() -> onnx.ModelProto:
    """A convolution, then ``x * clip(x + 3, 0, 6)``, which is no h-swish: its clip goes into a range."""
    rng = np.random.default_rng(3)
    values = {
        "w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32) * 0.4,
        "head": rng.standard_normal((10, 8)).astype(np.float32),
        "3": np.float32(3),
        "0": np.float32(0),
        "6": np.float32(6),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["x"], kernel_shape=[3, 3]),
        helper.make_node("Add", ["x", "3"], ["shifted"]),
        helper.make_node("Clip", ["shifted", "0", "6"], ["clipped"]),
        helper.make_node("Mul", ["x", "clipped"], ["product"]),
        helper.make_node("GlobalAveragePool", ["product"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "convolved",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, 12, 12))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 10))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    result.ir_version = 8
    plain = Graph(result)
    canonicalize(plain)
    return plain.to_model()


@pytest.mark.parametrize("profile", ["u8", "s8"])
@pytest.mark.parametrize("target", ["ort-cpu", "openvino-cpu", "tensorrt"])
def test_no_target_loses_a_clip_that_a_range_stands_for(target: str, profile: str) -> None:
    images = [
        2 * np.random.default_rng(seed).standard_normal((1, 3, 12, 12)).astype(np.float32)
        for seed in range(8)
    ]
    network = convolved()
    config = PtqConfig(range_estimator="minmax", equalization=False, stop_at_sqnr_db=-1000.0)
    quantized = emit_qdq(network, make_plan(network, images, config), profile)
    lowered, _ = lower_model(quantized, target)
    for image in images:
        feeds = {"image": image}
        wanted = make_program(network).run(feeds)["logits"]
        got = make_program(lowered).run(feeds)["logits"]
        # Without the clip the product is several times as large.
        assert np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()
