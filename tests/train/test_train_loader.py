"""Training batches depend on (seed, epoch, batch) alone, and without augmentation are evaluation's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeattn.data import (
    Augmentation,
    ImageSet,
    Preprocess,
    load_calibration,
    load_pixels,
    materialize,
    preprocess_image,
    training_geometry,
)
from edgeattn.errors import DataError
from edgeattn.train.augment import augment_batch, blank_rectangles, draw_augmentation
from edgeattn.train.loader import EpochLoader

SMALL = Preprocess(size=16, resize=20)
EVERYTHING = Augmentation(
    crop_scale=(0.5, 1.0),
    rotate_degrees=15,
    translate=0.1,
    horizontal_flip=True,
    color_jitter=0.2,
    random_erase=0.5,
)


def image_set(count: int = 20) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 30, 24, 3), dtype=np.uint8)
    return ImageSet.from_array(pixels, np.arange(count))


def make_loader(augmentation: Augmentation, preprocess: Preprocess = SMALL, **options: int) -> EpochLoader:
    images = image_set()
    pixels = load_pixels(images, training_geometry(preprocess, augmentation))
    values = {"batch_size": 8, "seed": 0, **options}
    return EpochLoader(
        pixels,
        images.labels,
        preprocess=preprocess,
        augmentation=augmentation,
        **values,  # type: ignore[arg-type]
    )


def test_training_calibration_and_measurement_see_the_same_bits(tmp_path: Path) -> None:
    images = image_set()
    for index, (pixels, _) in enumerate(images):
        Image.fromarray(pixels).save(tmp_path / f"{index:02}.png")
    measured = materialize(images, SMALL)
    calibration = load_calibration(tmp_path, preprocess=SMALL)
    np.testing.assert_array_equal(calibration.tensors, measured)
    seen = 0
    for inputs, labels in make_loader(Augmentation()).epoch(0):
        np.testing.assert_array_equal(inputs.numpy(), measured[labels.numpy()])
        seen += len(labels)
    assert seen == 16
    np.testing.assert_array_equal(preprocess_image(images.image(3), SMALL), measured[3])


def test_batches_repeat_for_a_seed_and_epoch_and_differ_for_others() -> None:
    def batches(epoch: int, seed: int = 0, start: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(make_loader(EVERYTHING, seed=seed).epoch(epoch, start))

    first, again = batches(1), batches(1)
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], batches(2)[0][0])
    assert not torch.equal(first[0][0], batches(1, seed=1)[0][0])
    (resumed,) = batches(1, start=1)
    assert torch.equal(resumed[0], first[1][0])


def test_ranks_share_each_batch() -> None:
    whole = list(make_loader(EVERYTHING).epoch(0))
    parts = [list(make_loader(EVERYTHING, rank=rank, world_size=2).epoch(0)) for rank in range(2)]
    for batch, (inputs, labels) in enumerate(whole):
        for rank in range(2):
            assert torch.equal(parts[rank][batch][0], inputs[rank::2])
            assert torch.equal(parts[rank][batch][1], labels[rank::2])


def test_the_incomplete_batch_is_left_out_and_a_small_set_is_one_batch() -> None:
    assert len(make_loader(Augmentation())) == 2
    (batch,) = make_loader(Augmentation(), batch_size=64).epoch(0)
    assert sorted(batch[1].tolist()) == list(range(20))
    with pytest.raises(DataError, match=r"too small for 16 process\(es\)"):
        make_loader(Augmentation(), world_size=16)


def test_pixels_of_another_size_are_refused() -> None:
    with pytest.raises(DataError, match=r"must be uint8 of shape \(2, 20, 20, 3\)"):
        EpochLoader(
            np.zeros((2, 16, 16, 3), np.uint8),
            np.arange(2),
            preprocess=SMALL,
            augmentation=EVERYTHING,
            batch_size=2,
            seed=0,
        )


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(crop_scale=(0.3, 0.9)),
        Augmentation(rotate_degrees=180),
        Augmentation(translate=0.5),
        Augmentation(color_jitter=1.0),
        EVERYTHING,
    ],
)
def test_augmented_values_stay_in_range(augmentation: Augmentation) -> None:
    images = torch.rand(16, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    draws = draw_augmentation(16, augmentation, 0.8, torch.Generator().manual_seed(1))
    result = augment_batch(images, draws, augmentation, 16)
    assert result.isfinite().all()
    assert result.min() >= 0
    assert result.max() <= 1 + 1e-6
    if augmentation.color_jitter < 1:
        assert result.shape == (16, 3, 16, 16)


def test_no_movement_drawn_means_the_evaluated_centre() -> None:
    """With a shift of zero, the view is the centre crop; geometry resamples on the same grid."""
    images = torch.rand(4, 3, 20, 20)
    augmentation = Augmentation(translate=1e-9)
    draws = draw_augmentation(4, augmentation, 16 / 20, torch.Generator().manual_seed(0))
    result = augment_batch(images, draws, augmentation, 16)
    torch.testing.assert_close(result, images[:, :, 2:18, 2:18], atol=1e-5, rtol=0)


def test_a_flip_alone_keeps_pixels_exact() -> None:
    images = torch.rand(32, 3, 8, 8)
    augmentation = Augmentation(horizontal_flip=True)
    draws = draw_augmentation(32, augmentation, 1.0, torch.Generator().manual_seed(0))
    result = augment_batch(images, draws, augmentation, 8)
    flipped = [torch.equal(result[index], images[index].flip(2)) for index in range(32)]
    same = [torch.equal(result[index], images[index]) for index in range(32)]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert 6 < sum(flipped) < 26


def test_rotation_turns_about_the_centre() -> None:
    images = torch.zeros(1, 1, 9, 9)
    images[0, 0, 4, 8] = 1
    augmentation = Augmentation(rotate_degrees=90)
    draws = draw_augmentation(1, augmentation, 1.0, torch.Generator().manual_seed(0))
    draws.theta[:] = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    result = augment_batch(images, draws, augmentation, 9)
    assert result[0, 0, 0, 4] == pytest.approx(1, abs=1e-5)


def test_erasing_blanks_the_drawn_share_of_images() -> None:
    draws = draw_augmentation(400, Augmentation(random_erase=0.25), 1.0, torch.Generator().manual_seed(0))
    result = blank_rectangles(torch.ones(400, 3, 16, 16), draws.erase)
    share = (result == 0).float().mean(dim=(1, 2, 3))
    assert 60 < int((share > 0).sum()) < 140
    assert share.max() < 0.3
    assert (result[:, 0] == result[:, 1]).all()
