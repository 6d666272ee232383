"""What a model tells of the images it wants, and what a folder of them becomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from PIL import Image

from edgeattn.data.model_input import ImageOptions
from edgeattn.errors import ArtifactError, RecipeError
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_images import (
    image_guess,
    inputs_for,
    prepare_images,
    record_seen,
    seen_images,
)
from edgeattn.progress import SilentProgress


def before_a_convolution(*nodes: NodeProto, **constants: float | list[float]) -> Graph:
    """Return a graph that does something with its image x before a convolution reads y."""
    values = {name: np.asarray(value, np.float32).reshape(1, -1, 1, 1) for name, value in constants.items()}
    values["w"] = np.ones((4, 3, 3, 3), np.float32)
    graph = helper.make_graph(
        [*nodes, helper.make_node("Conv", [nodes[-1].output[0] if nodes else "x", "w"], ["z"])],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 4, 6, 6))],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def node(kind: str, source: str, constant: str, result: str) -> NodeProto:
    return helper.make_node(kind, [source, constant], [result])


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (before_a_convolution(), None),
        (before_a_convolution(node("Div", "x", "c", "y"), c=255.0), "pixels"),
        (
            before_a_convolution(node("Mul", "x", "c", "a"), node("Sub", "a", "d", "y"), c=1 / 127.5, d=1.0),
            "pixels",
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
            "pixels",
        ),
        (
            before_a_convolution(node("Sub", "x", "m", "a"), node("Div", "a", "s", "y"), m=0.45, s=0.22),
            "unit",
        ),
        (
            before_a_convolution(node("Mul", "x", "c", "a"), node("Add", "a", "d", "y"), c=0.5, d=0.5),
            "symmetric",
        ),
        (before_a_convolution(node("Sub", "m", "x", "y"), m=1.0), "unit"),
    ],
    ids=["plain", "/ 255", "/ 127.5 - 1", "as for ImageNet", "of 0 to 1", "of -1 to 1", "the negative"],
)
def test_a_model_that_normalizes_its_image_by_itself_says_which_values_it_wants(
    graph: Graph, expected: str | None
) -> None:
    assert image_guess(graph).normalization == expected


@pytest.mark.parametrize(("task", "fit"), [("detect", "letterbox"), ("classify", "crop")])
def test_ultralytics_exports_take_what_their_predictors_give(task: str, fit: str) -> None:
    graph = before_a_convolution()
    graph.metadata |= {"author": "Ultralytics", "task": task}
    assert image_guess(graph) == ImageOptions("unit", fit)  # type: ignore[arg-type]


def photographs(folder: Path, count: int = 24) -> Path:
    folder.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


def test_a_limit_spreads_over_a_folder(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "photos")
    prepared = prepare_images(before_a_convolution(), folder, ImageOptions("pixels", "stretch"))
    all_of_them = inputs_for(folder, (1, 3, 8, 8), SilentProgress(), prepared).tensors
    some = inputs_for(folder, (1, 3, 8, 8), SilentProgress(), prepared, 16).tensors
    assert len(all_of_them) == 24
    places = [next(i for i, one in enumerate(all_of_them) if np.array_equal(one, other)) for other in some]
    assert len(set(places)) == 16
    assert (places[0], places[-1]) == (0, 23)
    assert max(np.diff(places)) == 2


def test_options_of_images_are_refused_for_an_array(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"is an array of inputs.*--normalization"):
        prepare_images(before_a_convolution(), tmp_path / "a.npy", ImageOptions("unit"))
    assert prepare_images(before_a_convolution(), tmp_path / "a.npy", ImageOptions()) is None


def test_which_images_calibrated_is_noted(tmp_path: Path) -> None:
    assert seen_images(tmp_path) == frozenset()
    record_seen(tmp_path, ["a" * 64, "b" * 64])
    assert seen_images(tmp_path) == {"a" * 64, "b" * 64}
    (tmp_path / "calibration_images.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="no list of images"):
        seen_images(tmp_path)
