"""What the commands on anyone's ONNX share."""

from __future__ import annotations

import pytest

from edgeattn.errors import ModelError
from edgeattn.pipeline_tools import usual_preprocess


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
