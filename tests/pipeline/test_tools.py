"""What the commands on anyone's ONNX share."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeattn.data.preprocess import normalize_pixels
from edgeattn.errors import ModelError
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_tools import reads_pixels, usual_preprocess


def test_images_are_resized_as_for_imagenet_in_proportion() -> None:
    chosen = usual_preprocess((1, 3, 112, 112))
    assert (chosen.size, chosen.resize) == (112, 128)


@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ((1, 96, 96, 3), "Export the model channels first"),
        ((1, 1, 28, 28), r"npy file of float32, shape \(images, 1, 28, 28\)"),
        ((1, 3, 96, 64), r"shape \(images, 3, 96, 64\)"),
    ],
)
def test_what_images_do_not_fit_says_what_to_do(shape: tuple[int, ...], way: str) -> None:
    with pytest.raises(ModelError, match=way):
        usual_preprocess(shape)


def before_a_convolution(*nodes: NodeProto, **constants: float | list[float]) -> Graph:
    """Return a graph that does something with its image x before a convolution reads y."""
    values = {name: np.asarray(value, np.float32).reshape(1, -1, 1, 1) for name, value in constants.items()}
    values["w"] = np.ones((4, 3, 3, 3), np.float32)
    graph = helper.make_graph(
        [*nodes, helper.make_node("Conv", [nodes[-1].output[0] if nodes else "x", "w"], ["z"])],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def node(kind: str, source: str, constant: str, result: str) -> NodeProto:
    return helper.make_node(kind, [source, constant], [result])


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (before_a_convolution(), False),
        (before_a_convolution(node("Div", "x", "c", "y"), c=255.0), True),
        (
            before_a_convolution(node("Mul", "x", "c", "a"), node("Sub", "a", "d", "y"), c=1 / 127.5, d=1.0),
            True,
        ),
        (
            before_a_convolution(
                node("Div", "x", "c", "a"),
                node("Sub", "a", "m", "b"),
                node("Div", "b", "s", "y"),
                c=255.0,
                m=[0.485, 0.456, 0.406],
                s=[0.229, 0.224, 0.225],
            ),
            True,
        ),
        (before_a_convolution(node("Sub", "x", "m", "a"), node("Div", "a", "s", "y"), m=0.45, s=0.22), False),
        (before_a_convolution(node("Mul", "x", "c", "a"), node("Add", "a", "d", "y"), c=0.5, d=0.5), False),
    ],
    ids=["plain", "/ 255", "/ 127.5 - 1", "as for ImageNet", "of 0 to 1", "of -1 to 1"],
)
def test_a_model_that_scales_its_image_by_itself_takes_pixels(graph: Graph, expected: bool) -> None:
    assert reads_pixels(graph) == expected


def test_pixels_stay_what_they_are() -> None:
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    given = normalize_pixels(pixels, usual_preprocess((1, 3, 8, 8), pixels=True))
    np.testing.assert_allclose(given, pixels.transpose(2, 0, 1), rtol=1e-6)
