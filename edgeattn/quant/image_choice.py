"""Which calibration images a step of quantization looks at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeattn.data.calibration import spread

__all__ = ["Images", "split_images", "spread_images"]

Images = Sequence[NDArray[np.float32]]

MEASURED_IMAGES = 32
LEAST_MEASURED = 8


def split_images(images: Images) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Return images to measure steps on and images to learn from: the same ones if there are few."""
    count = min(MEASURED_IMAGES, len(images) // 4)
    if count < LEAST_MEASURED:
        return list(images), list(images)
    chosen = set(spread(len(images), count))
    return (
        [image for index, image in enumerate(images) if index in chosen],
        [image for index, image in enumerate(images) if index not in chosen],
    )


def spread_images(images: Images, count: int) -> list[NDArray[np.float32]]:
    """Return up to `count` images, evenly spread over all of them."""
    return [images[index] for index in spread(len(images), count)]
