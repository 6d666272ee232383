"""Random changes to a batch of training images, drawn for the whole batch at once.

Every random number is drawn on the CPU from the batch's own generator, so a batch is the same on any
device, and on every rank of a distributed run before it takes its share.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeattn.data.spec import Augmentation

__all__ = ["RandomDraws", "augment_batch", "blank_rectangles", "draw_augmentation"]

_ASPECT = (3 / 4, 4 / 3)  # of random resized crops, width over height
_ERASED_AREA = (0.02, 0.2)  # share of the image that random erasing blanks
_LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class RandomDraws:
    """The random choices for one batch; each tensor's first dimension is the batch.

    Attributes:
        theta: Map from output to input coordinates in [-1, 1], shape (batch, 2, 3).
        jitter: Factors of brightness, contrast and saturation, shape (batch, 3).
        erase: Blanked rectangles as left, top, right, bottom in [0, 1], shape (batch, 4); all zero
            where nothing is blanked.
    """

    theta: Tensor
    jitter: Tensor
    erase: Tensor

    def share(self, rank: int, world_size: int) -> RandomDraws:
        """Return the draws of every `world_size`-th image from `rank` on."""
        return RandomDraws(
            self.theta[rank::world_size], self.jitter[rank::world_size], self.erase[rank::world_size]
        )


def draw_augmentation(
    batch: int, augmentation: Augmentation, view: float, generator: torch.Generator
) -> RandomDraws:
    """Draw what happens to each image of a batch.

    Args:
        batch: Number of images.
        augmentation: Which changes, and how large.
        view: Side of the evaluated square over the side of the stored images, in (0, 1].
        generator: Source of all randomness.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator) * (high - low) + low

    if augmentation.crop_scale == (1.0, 1.0):
        half_width = half_height = torch.full((batch,), view)
        centre_x = centre_y = torch.zeros(batch)
    else:
        area = uniform(*augmentation.crop_scale)
        aspect = uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])).exp()
        half_width = (area * aspect).sqrt().clamp(max=1.0)
        half_height = (area / aspect).sqrt().clamp(max=1.0)
        centre_x = uniform(-1, 1) * (1 - half_width)
        centre_y = uniform(-1, 1) * (1 - half_height)
    shift = uniform(-2 * augmentation.translate, 2 * augmentation.translate, 2) * view
    angle = uniform(-1, 1) * math.radians(augmentation.rotate_degrees)
    mirror = torch.ones(batch)
    if augmentation.horizontal_flip:
        mirror = torch.where(uniform(0, 1) < 0.5, -mirror, mirror)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([cos * half_width * mirror, -sin * half_height, centre_x + shift[:, 0]], dim=1),
            torch.stack([sin * half_width * mirror, cos * half_height, centre_y + shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    jitter = uniform(1 - augmentation.color_jitter, 1 + augmentation.color_jitter, 3)
    return RandomDraws(theta, jitter, _draw_rectangles(batch, augmentation.random_erase, generator))


def _draw_rectangles(batch: int, probability: float, generator: torch.Generator) -> Tensor:
    if probability == 0:
        return torch.zeros(batch, 4)
    chance, area, aspect, x, y = torch.rand(5, batch, generator=generator)
    area = area * (_ERASED_AREA[1] - _ERASED_AREA[0]) + _ERASED_AREA[0]
    ratio = (aspect * 2 - 1).mul(math.log(3)).exp()
    width = (area * ratio).sqrt().clamp(max=1.0)
    height = (area / ratio).sqrt().clamp(max=1.0)
    left, top = x * (1 - width), y * (1 - height)
    rectangles = torch.stack([left, top, left + width, top + height], dim=1)
    return torch.where((chance < probability)[:, None], rectangles, torch.zeros(1, 4))


def augment_batch(images: Tensor, draws: RandomDraws, augmentation: Augmentation, size: int) -> Tensor:
    """Apply drawn changes, before normalization.

    Args:
        images: Values in [0, 1], shape (batch, 3, stored, stored).
        draws: One row for each image.
        augmentation: Which steps to do; what is off costs nothing and changes no bit.
        size: Side of the result in pixels.

    Returns:
        Values in [0, 1], shape (batch, 3, size, size). Erasing follows after normalization, by
        `blank_rectangles`.
    """
    geometric = (
        augmentation.crop_scale != (1.0, 1.0) or augmentation.rotate_degrees > 0 or augmentation.translate > 0
    )
    device = images.device
    if geometric:
        shape = [len(images), images.shape[1], size, size]
        grid = F.affine_grid(draws.theta.to(device), shape, align_corners=False)
        images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    elif augmentation.horizontal_flip:  # without resampling, so that pixels stay exact
        mirrored = (draws.theta[:, 0, 0] < 0).to(device)[:, None, None, None]
        images = torch.where(mirrored, images.flip(3), images)
    if augmentation.color_jitter > 0:
        images = _jitter(images, draws.jitter.to(device))
    return images


def _jitter(images: Tensor, factors: Tensor) -> Tensor:
    brightness, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    luma = torch.tensor(_LUMA, device=images.device)[None, :, None, None]
    images = (images * brightness).clamp(0, 1)
    mean = (images * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    images = (mean + (images - mean) * contrast).clamp(0, 1)
    grey = (images * luma).sum(dim=1, keepdim=True)
    return (grey + (images - grey) * saturation).clamp(0, 1)


def blank_rectangles(images: Tensor, rectangles: Tensor) -> Tensor:
    """Set rectangles of normalized images, shape (batch, 3, size, size), to zero: the mean colour."""
    height, width = images.shape[2:]
    x = (torch.arange(width, device=images.device) + 0.5) / width
    y = (torch.arange(height, device=images.device) + 0.5) / height
    left, top, right, bottom = (rectangles.to(images.device)[:, i, None] for i in range(4))
    inside_x = (x >= left) & (x < right)  # (batch, width)
    inside_y = (y >= top) & (y < bottom)  # (batch, height)
    inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    return images.masked_fill(inside, 0.0)
