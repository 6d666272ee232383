"""Shuffled, augmented batches that depend on nothing but (seed, epoch, batch).

So a run that resumes in the middle of an epoch sees the batches that an uninterrupted one saw.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeattn.data.pixels import training_geometry
from edgeattn.data.spec import Augmentation, Preprocess
from edgeattn.errors import DataError
from edgeattn.train.augment import augment_batch, blank_rectangles, draw_augmentation

__all__ = ["EpochLoader", "mix_seed", "normalize_batch"]


def mix_seed(*parts: int) -> int:
    """Return a well-mixed 64-bit seed, different for different parts."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def normalize_batch(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Subtract the mean and divide by the deviation.

    The same operations as `normalize_pixels`, in the same order and precision: equal in every bit.

    Args:
        images: float32 in [0, 1], shape (batch, 3, height, width).
        preprocess: `mean` and `std` are used.
    """
    mean = torch.tensor(preprocess.mean, dtype=torch.float32, device=images.device)[None, :, None, None]
    std = torch.tensor(preprocess.std, dtype=torch.float32, device=images.device)[None, :, None, None]
    return (images - mean) / std


class EpochLoader:
    """Training batches from decoded images.

    The last, incomplete batch of an epoch is left out, because batch statistics of a few images
    are noise; the next epoch's order is another. A set smaller than one batch is one batch.

    Args:
        pixels: uint8 of shape (count, stored, stored, 3), as `load_pixels` returns for
            `training_geometry(preprocess, augmentation)`.
        labels: Class indices, shape (count,).
        preprocess: Of the network.
        augmentation: Random changes.
        batch_size: Images for each step, over all ranks.
        seed: Of the order and of the changes.
        rank: This process among `world_size`; it takes every `world_size`-th image of each batch.
        world_size: Number of processes.
        device: Where batches are made.

    Raises:
        DataError: If pixels and labels do not belong together, or a batch is smaller than two images
            for each rank.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.int64],
        *,
        preprocess: Preprocess,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        stored = training_geometry(preprocess, augmentation).size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (stored, stored, 3) or len(pixels) != len(labels):
            raise DataError(
                f"Training pixels must be uint8 of shape ({len(labels)}, {stored}, {stored}, 3) for this "
                f"preprocessing and augmentation, got {pixels.dtype} {pixels.shape}. Load them with "
                "load_pixels(images, training_geometry(preprocess, augmentation))."
            )
        self._pixels = pixels
        self._labels = labels
        self._preprocess = preprocess
        self._augmentation = augmentation
        self._batch = min(batch_size, len(pixels))
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._device = torch.device(device)
        self._view = preprocess.size / stored if preprocess.resize is not None else 1.0
        if self._batch < 2 * world_size:
            raise DataError(
                f"A batch of {self._batch} images is too small for {world_size} process(es): each needs at "
                "least two for its batch statistics. Add training images, or raise batch_size."
            )

    def __len__(self) -> int:
        return len(self._pixels) // self._batch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch.

        Args:
            epoch: Its number; other numbers give another order and other changes.
            start: First batch to yield, for a run that resumes.

        Yields:
            Inputs, float32 of shape (share, 3, size, size), and labels, int64 of shape (share,).
        """
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._pixels))
        for index in range(start, len(self)):
            yield self._batch_of(order[index * self._batch : (index + 1) * self._batch], epoch, index)

    def _batch_of(self, chosen: NDArray[np.int64], epoch: int, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(mix_seed(self._seed, epoch, index))
        draws = draw_augmentation(len(chosen), self._augmentation, self._view, generator)
        draws = draws.share(self._rank, self._world_size)
        own = chosen[self._rank :: self._world_size]
        pixels = torch.from_numpy(np.ascontiguousarray(self._pixels[own])).to(self._device)
        images = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
        images = augment_batch(images, draws, self._augmentation, self._preprocess.size)
        images = normalize_batch(images, self._preprocess)
        if self._augmentation.random_erase > 0:
            images = blank_rectangles(images, draws.erase)
        return images, torch.from_numpy(self._labels[own]).to(self._device)
