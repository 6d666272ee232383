"""What is appended to a model's bytes adds maps, and leaves its answers as they are."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from quant_networks import SIZE, Builder, inverted_residual, pictures

from edgeattn.kit.deploy_files import demo_folder
from edgeattn.kit.heat import EVIDENCE, make_heat_part


def outputs(data: bytes, image: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: image}), strict=True))


def test_evidence_averages_to_the_logits() -> None:
    """The mean over all places, plus the classifier's bias, is the logit: so the map explains the answer."""
    model = inverted_residual()
    part = make_heat_part(model)
    assert part is not None
    assert part.evidence == EVIDENCE
    assert part.attention == ()
    image = pictures(1)[0]
    found = outputs(model.SerializeToString() + part.data, image)
    alone = outputs(model.SerializeToString(), image)["logits"]
    np.testing.assert_array_equal(found["logits"], alone)
    bias = next(onnx.numpy_helper.to_array(i) for i in model.graph.initializer if i.name == "head.bias")
    assert found[EVIDENCE].shape == (1, 10, SIZE, SIZE)
    np.testing.assert_allclose(found[EVIDENCE].mean((2, 3)) + bias, alone, rtol=1e-4, atol=1e-4)


def gated() -> onnx.ModelProto:
    """A map gated by rows, then by columns, as Coordinate Attention does; and by channel, as SE does."""
    b = Builder(3)
    x = b.conv("input", "stem", 3, 4, kernel=3)
    rows = b.node("Sigmoid", [b.node("ReduceMean", [x], "rows", axes=[3], keepdims=1)], "gate_rows")
    columns = b.node("Sigmoid", [b.node("ReduceMean", [x], "columns", axes=[2], keepdims=1)], "gate_columns")
    y = b.node("Mul", [b.node("Mul", [x, columns], "by_columns"), rows], "by_rows")
    channel = b.node("Sigmoid", [b.node("GlobalAveragePool", [y], "squeeze")], "gate_channel")
    y = b.node("Mul", [y, channel], "by_channel")
    y = b.node("Flatten", [b.node("GlobalAveragePool", [y], "pool")], "flat")
    b.constant("head.weight", b.random.normal(size=(10, 4)))
    b.constant("head.bias", b.random.normal(size=10))
    return b.model(b.node("Gemm", [y, "head.weight", "head.bias"], "logits", transB=1), (1, 10))


def test_attention_is_the_share_that_gates_by_place_let_through() -> None:
    """Two gates of one module make one map; a gate by channel makes none."""
    model = gated()
    part = make_heat_part(model)
    assert part is not None
    assert len(part.attention) == 1
    image = pictures(1)[0]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for name in ("stem", "gate_rows", "gate_columns"):
        watched.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    inner = outputs(watched.SerializeToString(), image)
    x = inner["stem"]
    expected = np.abs(x * inner["gate_rows"] * inner["gate_columns"]).mean(1) / (np.abs(x).mean(1) + 1e-6)
    found = outputs(model.SerializeToString() + part.data, image)
    np.testing.assert_allclose(found[part.attention[0]][0], expected, rtol=1e-4)


def test_a_graph_without_a_pooled_classifier_has_no_maps() -> None:
    b = Builder(0)
    flat = b.node("Flatten", [b.conv("input", "conv", 3, 2)], "flat")
    b.constant("w", b.random.normal(size=(2 * SIZE * SIZE, 5)))
    assert make_heat_part(b.model(b.node("MatMul", [flat, "w"], "logits"), (1, 5))) is None


@pytest.mark.parametrize("manifest", ["model.u8.onnx", "model.openvino.onnx"])
def test_the_demonstration_has_both_kinds(manifest: str) -> None:
    """Every one of its sixteen Coordinate Attentions is found, in each spelling, and the part is small."""
    part = make_heat_part(onnx.load(str(demo_folder() / manifest)))
    assert part is not None
    assert part.evidence == EVIDENCE
    assert len(part.attention) == 16
    assert len(part.data) < 20_000
