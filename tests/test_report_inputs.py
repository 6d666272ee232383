"""The picture of a network's inputs: what it shows is what the network gets."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from report_samples import make_report

from edgeattn.data.model_input import ImageOptions, ModelInput, Preparation, model_input
from edgeattn.data.preprocess import preprocess_image
from edgeattn.data.spec import Preprocess
from edgeattn.report_html import render_html
from edgeattn.report_inputs import input_sheet

# Broad areas, which a JPEG keeps.
COLOURS = [(250, 20, 20), (20, 250, 20), (20, 20, 250)]


def flags(count: int = 3) -> list[NDArray[np.uint8]]:
    """Return images of three stripes, the first ones beginning with other colours."""
    return [
        np.repeat(np.repeat(np.uint8([[COLOURS[(i + j) % 3] for j in range(3)]]), 120, 0), 40, 1)
        for i in range(count)
    ]


def shown(tensors: NDArray[np.float32], preparation: Preparation | None) -> NDArray[np.int16]:
    sheet = input_sheet(tensors, preparation)
    assert sheet is not None
    with Image.open(io.BytesIO(sheet.jpeg)) as image:
        assert image.width == sheet.width
        return np.asarray(image.convert("RGB"), np.int16)


@pytest.mark.parametrize(
    "preparation",
    [
        Preprocess(size=120),
        model_input((1, 3, 120, 120), ImageOptions("symmetric", "stretch", bgr=True)),
        model_input((1, 120, 120, 3), ImageOptions("pixels", "stretch")),
        model_input((1, 3, 90, 120), ImageOptions("0.4,0.5,0.6/0.2", "stretch")),
    ],
    ids=["of a recipe", "bgr", "channels last", "not square"],
)
def test_pictures_are_the_images_again(preparation: Preparation) -> None:
    images = flags()
    picture = shown(np.stack([preprocess_image(image, preparation) for image in images]), preparation)
    height = 90 if isinstance(preparation, ModelInput) and preparation.height == 90 else 120
    assert picture.shape == (height, 3 * 120 + 2 * 6, 3)
    for place in range(3):
        for stripe in range(3):
            found = picture[height // 2, place * 126 + 20 + 40 * stripe]
            assert np.abs(found - COLOURS[(place + stripe) % 3]).max() < 30


def test_a_wrong_order_of_channels_shows() -> None:
    bgr = model_input((1, 3, 120, 120), ImageOptions("unit", "stretch", bgr=True))
    rgb = bgr.model_copy(update={"channels": "rgb"})
    picture = shown(preprocess_image(flags(1)[0], bgr)[None], rgb)
    assert np.abs(picture[60, 20] - np.array(COLOURS[0])[::-1]).max() < 30


def test_small_images_are_enlarged_and_large_ones_made_smaller() -> None:
    digits = np.zeros((20, 1, 8, 8), np.float32)
    digits[:, :, :4] = 1
    picture = shown(digits, None)
    assert picture.shape == (2 * 144 + 6, 6 * 144 + 5 * 6, 3)
    assert picture[20, 20].min() > 240 > 15 > picture[120, 20].max()
    assert shown(np.zeros((1, 3, 800, 608), np.float32), None).shape == (150, 114, 3)


def test_what_is_no_image_has_no_picture() -> None:
    assert input_sheet(np.zeros((4, 7, 8, 8), np.float32), None) is None


def test_the_page_holds_the_picture_and_says_how_it_came_to_be() -> None:
    preparation = model_input((1, 3, 16, 24), ImageOptions("unit", "letterbox"))
    sheet = input_sheet(np.zeros((30, 3, 16, 24), np.float32), preparation)
    assert sheet is not None
    page = render_html(make_report(), sheet)
    assert sheet.data_uri() in page
    assert "12 of 30; RGB, letterboxed to 16 x 24, values of 0 to 1." in page
    assert "img-src data:" in page
    assert "What the network sees" not in render_html(make_report())
