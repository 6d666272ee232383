"""The graph that browsers get is optimized already, computes the same, and fits every WebAssembly build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeattn.data import load_image, preprocess_image
from edgeattn.errors import ModelError
from edgeattn.kit.deploy_files import demo_folder
from edgeattn.kit.model_folder import load_model
from edgeattn.kit.web_model import optimize_for_web

ort = pytest.importorskip("onnxruntime")


def logits(model: bytes | Path, images: list[np.ndarray], *, optimize: bool) -> np.ndarray:
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in images])


def test_the_demonstrations_graph_is_optimized_and_computes_the_same_bits() -> None:
    """What is shipped, and what would be made anew, are the model as ONNX Runtime runs it."""
    model = load_model(demo_folder())
    original = demo_folder() / model.model.file
    shipped = (demo_folder() / model.variants["web"].file).read_bytes()
    images = [
        preprocess_image(load_image(demo_folder() / name), model.preprocess)
        for name in sorted(model.files)
        if name.startswith("images/")
    ][:8]
    expected = logits(original, images, optimize=True)
    for data in (shipped, optimize_for_web(original)):
        np.testing.assert_array_equal(logits(data, images, optimize=False), expected)
        graph = onnx.load_from_string(data).graph
        kinds = [node.op_type for node in graph.node]
        assert "Conv" not in kinds
        assert kinds.count("QLinearConv") > 50
        assert len(kinds) < len(onnx.load(original).graph.node) / 2


def test_float_convolutions_get_no_layout_of_one_processor(tmp_path: Path) -> None:
    """On x86, ONNX Runtime would block their channels (NCHWc), which no other build knows."""
    weight = numpy_helper.from_array(np.ones((16, 16, 3, 3), np.float32), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["y"], ["z"]),
        ],
        "float",
        [value("x", TensorProto.FLOAT, [1, 16, 8, 8])],
        [value("z", TensorProto.FLOAT, [1, 16, 8, 8])],
        [weight],
    )
    path = tmp_path / "float.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    made = onnx.load_from_string(optimize_for_web(path))
    assert len(made.graph.node) == 1
    assert {item.domain for item in made.opset_import} <= {"", "com.microsoft"}
    assert {node.domain for node in made.graph.node} <= {"", "com.microsoft"}


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.u8.onnx"
    path.write_bytes(b"no model at all")
    with pytest.raises(ModelError, match=r"cannot optimize model\.u8\.onnx"):
        optimize_for_web(path)
