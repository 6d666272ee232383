"""Images for networks without a recipe: any frame, any normalization, and what a model tells of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeattn.data import ImageSet, Preprocess, materialize, preprocess_image, resize_and_crop
from edgeattn.data.model_input import (
    NORMALIZATIONS,
    Fit,
    ImageOptions,
    ModelInput,
    guess_normalization,
    model_input,
    parse_normalization,
)
from edgeattn.errors import ModelError, RecipeError

SIDES = st.integers(8, 90)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(size=st.integers(8, 64), height=SIDES, width=SIDES)
def test_a_square_crop_is_that_of_imagenets_evaluation(size: int, height: int, width: int) -> None:
    usual = Preprocess(size=size, resize=round(size * 256 / 224))
    image = noise(height, width)
    np.testing.assert_array_equal(
        preprocess_image(image, model_input((1, 3, size, size))), preprocess_image(image, usual)
    )


@given(
    frame=st.tuples(SIDES, SIDES),
    image=st.tuples(SIDES, SIDES),
    fit=st.sampled_from(["crop", "stretch", "letterbox"]),
)
def test_every_image_fills_every_frame(frame: tuple[int, int], image: tuple[int, int], fit: Fit) -> None:
    chosen = model_input((1, 3, *frame), ImageOptions("pixels", fit))
    result = resize_and_crop(noise(*image), chosen)
    assert result.shape == (*frame, 3)
    assert result.flags.c_contiguous


@given(frame=st.tuples(SIDES, SIDES), image=st.tuples(SIDES, SIDES))
def test_a_letterbox_keeps_all_of_an_image_and_a_crop_has_no_borders(
    frame: tuple[int, int], image: tuple[int, int]
) -> None:
    white = np.full((*image, 3), 255, np.uint8)
    letterbox = ModelInput(height=frame[0], width=frame[1], fit="letterbox")
    inside = (resize_and_crop(white, letterbox) == 255).all(-1)
    rows, columns = inside.any(1), inside.any(0)
    assert rows.all() or columns.all()
    assert inside.sum() == rows.sum() * columns.sum()
    scale = min(frame[0] / image[0], frame[1] / image[1])
    assert abs(rows.sum() - scale * image[0]) <= 1
    assert abs(columns.sum() - scale * image[1]) <= 1
    assert (resize_and_crop(white, letterbox)[~inside] == 114).all()
    assert (resize_and_crop(white, letterbox.model_copy(update={"fit": "crop"})) == 255).all()


def test_borders_are_as_wide_on_both_sides() -> None:
    letterbox = ModelInput(height=32, width=64, fit="letterbox", interpolation="nearest")
    image = np.full((16, 16, 3), 200, np.uint8)
    result = resize_and_crop(image, letterbox)
    assert (result[:, 16:48] == 200).all()
    assert (result[:, :16] == 114).all()
    assert (result[:, 48:] == 114).all()


def test_channels_come_last_where_the_model_has_them_last() -> None:
    image, first = noise(12, 20), model_input((1, 3, 16, 24), ImageOptions("unit"))
    last = model_input((1, 16, 24, 3), ImageOptions("unit"))
    assert (first.layout, last.layout) == ("nchw", "nhwc")
    given = preprocess_image(image, last)
    assert given.flags.c_contiguous
    np.testing.assert_array_equal(given, preprocess_image(image, first).transpose(1, 2, 0))
    whole = materialize(ImageSet.from_array(image[None], [0]), last)
    np.testing.assert_array_equal(whole, given[None])
    assert model_input((1, 16, 24, 1)).channels == "gray"
    assert "channels last" in last.describe()


def test_blue_comes_first_where_it_is_asked_for() -> None:
    image = noise(12, 12)
    rgb, bgr = (ModelInput(height=12, width=12, fit="stretch", channels=order) for order in ("rgb", "bgr"))
    np.testing.assert_array_equal(resize_and_crop(image, bgr), resize_and_crop(image, rgb)[..., ::-1])


def test_gray_images_are_luma_of_one_channel() -> None:
    chosen = model_input((1, 1, 12, 12), ImageOptions(fit="stretch"))
    image = noise(12, 12)
    result = preprocess_image(image, chosen)
    assert result.shape == (1, 12, 12)
    luma = image @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(result[0], luma / 255, atol=1.01 / 255)


@pytest.mark.parametrize(("name", "ends"), [("unit", (0, 1)), ("symmetric", (-1, 1)), ("pixels", (0, 255))])
def test_values_span_what_a_normalization_says(name: str, ends: tuple[float, float]) -> None:
    for shade, end in zip((0, 255), ends, strict=True):
        image = np.full((8, 8, 3), shade, np.uint8)
        result = preprocess_image(image, model_input((1, 3, 8, 8), ImageOptions(name)))
        np.testing.assert_allclose(result, end, rtol=1e-6)


def test_numbers_are_a_mean_and_a_deviation() -> None:
    assert parse_normalization("0.5/0.25") == ((0.5,), (0.25,))
    assert parse_normalization("0.1,0.2,0.3/1") == ((0.1, 0.2, 0.3), (1.0,))
    chosen = model_input((1, 3, 8, 8), ImageOptions("0.1,0.2,0.3/0.5"))
    assert chosen.normalization == "0.1,0.2,0.3/0.5"
    result = preprocess_image(np.zeros((8, 8, 3), np.uint8), chosen)
    np.testing.assert_allclose(result[:, 0, 0], [-0.2, -0.4, -0.6], rtol=1e-6)


@pytest.mark.parametrize(
    "text", ["caffe", "0.5", "0.5/0", "0.5/-1", "1,2/1", "a/b", "nan/1", "1/inf", "1/1/1", ""]
)
def test_other_normalizations_are_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(
        RecipeError, match=r"normaliz.*expected imagenet, unit, symmetric, pixels, or MEAN/STD"
    ):
        parse_normalization(text)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_normalization_is_called_by_its_name(name: str) -> None:
    assert model_input((1, 3, 8, 8), ImageOptions(name)).normalization == name


@pytest.mark.parametrize(
    ("factor", "shift", "expected"),
    [
        (1.0, 0.0, "unit"),
        (1 / 255, 0.0, "pixels"),
        (1 / 127.5, -1.0, "pixels"),
        (1 / 255 / 0.225, -0.45 / 0.225, "pixels"),
        (1 / 0.225, -0.45 / 0.225, "unit"),
        (2.0, -1.0, "unit"),
        (0.5, 0.5, "symmetric"),
        (1.0, -114.5, "pixels"),
        (0.017, -114.5 * 0.017, "pixels"),
        (1e-6, 0.0, None),
        (1e6, 0.0, None),
    ],
)
def test_what_a_model_does_first_says_which_values_it_wants(
    factor: float, shift: float, expected: str | None
) -> None:
    assert guess_normalization(factor, shift) == expected


def test_what_the_user_says_comes_before_what_was_recorded_and_that_before_a_guess() -> None:
    shape, guess = (1, 3, 16, 24), ImageOptions("unit", "letterbox")
    guessed = model_input(shape, guess=guess)
    assert (guessed.normalization, guessed.fit) == ("unit", "letterbox")
    recorded = model_input(shape, ImageOptions("symmetric", "stretch", bgr=True))
    assert model_input(shape, guess=guess, recorded=recorded) == recorded
    said = model_input(shape, ImageOptions("pixels", bgr=False), guess, recorded)
    assert (said.normalization, said.fit, said.channels) == ("pixels", "stretch", "rgb")
    # Recorded for another size: another model's.
    assert model_input((1, 3, 8, 8), guess=guess, recorded=recorded).normalization == "unit"


@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ((1, 3, 28), r"npy file of float32, shape \(images, 3, 28\)"),
        ((1, 4, 28, 28), r"npy file of float32, shape \(images, 4, 28, 28\)"),
        ((1, 3, 8192, 64), r"sides of 8 to 4096.*shape \(images, 3, 8192, 64\)"),
    ],
)
def test_what_images_do_not_fit_says_what_to_do(shape: tuple[int, ...], way: str) -> None:
    with pytest.raises(ModelError, match=way):
        model_input(shape)


def test_gray_images_have_no_order_of_channels() -> None:
    with pytest.raises(RecipeError, match="leave out bgr"):
        model_input((1, 1, 8, 8), ImageOptions(bgr=True))


@pytest.mark.parametrize("wrong", [{"std": (0.0,)}, {"mean": (0.1, 0.2)}, {"height": 4}, {"crop_pct": 0}])
def test_a_damaged_record_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ModelInput.model_validate({"height": 8, "width": 8, **wrong})


def test_a_set_of_images_becomes_what_each_becomes() -> None:
    images = [noise(20 + index, 40, index) for index in range(3)]
    chosen = ModelInput(height=16, width=24, fit="letterbox", channels="gray", mean=(0.5,), std=(0.5,))
    # Of one size, as an array holds them.
    whole = materialize(ImageSet.from_array(np.stack([image[:20] for image in images]), [0, 0, 0]), chosen)
    assert whole.shape == (3, 1, 16, 24)
    for result, image in zip(whole, images, strict=True):
        np.testing.assert_array_equal(result, preprocess_image(image[:20], chosen))
