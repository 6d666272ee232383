"""Divide a data set in two: seeded, stratified, and with near-identical images on one side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeattn.data.image_set import ImageSet, bad_images_error
from edgeattn.errors import DataError

__all__ = ["group_near_duplicates", "select_balanced", "split_indices"]

_THUMBNAIL_SIDE = 16
# Two pictures of one class whose thumbnails correlate this strongly show the same thing in the same
# place: frames of a burst, re-encoded or slightly brightened copies.
_DUPLICATE_CORRELATION = 0.941
_ROWS_AT_ONCE = 1024
_MOST_BAD_IMAGES = 100


def split_indices(
    labels: NDArray[np.int64], validation_share: float, seed: int, groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide positions into train and validation, class by class.

    A group is never divided. A class of at least two groups appears on both sides. If every class
    is a single group (one image for each class, say), all of them are divided as one pool;
    otherwise a class that is a single group stays in train, where it can be learned.

    Args:
        labels: Class index of each image.
        validation_share: Share of each class to hold out, in (0, 1).
        seed: Equal seeds give equal splits.
        groups: Group of each image; groups must not span classes. By default each image is its own.

    Returns:
        Sorted positions for train and for validation.

    Raises:
        DataError: If one side would be empty.
    """
    if groups is None:
        groups = np.arange(len(labels), dtype=np.int64)
    rng = np.random.default_rng(seed)
    by_class = [_groups_of_class(np.flatnonzero(labels == label), groups) for label in np.unique(labels)]
    if all(len(members) == 1 for members in by_class):
        by_class = [[members[0] for members in by_class]]
    held_out: list[NDArray[np.int64]] = []
    for members in by_class:
        held_out += _hold_out(members, validation_share, rng)
    validation = np.sort(np.concatenate(held_out)) if held_out else np.array([], dtype=np.int64)
    train = np.setdiff1d(np.arange(len(labels)), validation)
    if not len(train) or not len(validation):
        raise DataError(
            f"{len(labels)} images cannot be divided into train and validation with validation_share "
            f"{validation_share}: one side would be empty. Add images, or change validation_share."
        )
    return train, validation


def _groups_of_class(positions: NDArray[np.int64], groups: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    order = np.argsort(groups[positions], kind="stable")
    starts = np.flatnonzero(np.diff(groups[positions][order])) + 1
    return np.split(positions[order], starts)


def _hold_out(
    members: list[NDArray[np.int64]], share: float, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Choose groups whose images add up to about `share`; leave at least one group on each side."""
    if len(members) < 2:
        return []
    wanted = max(1, round(share * sum(len(group) for group in members)))
    chosen: list[NDArray[np.int64]] = []
    held = 0
    order = rng.permutation(len(members))
    for index in order:
        if len(chosen) == len(members) - 1:
            break
        if held + len(members[index]) <= wanted:
            chosen.append(members[index])
            held += len(members[index])
    return chosen or [min((members[index] for index in order), key=len)]


def select_balanced(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Choose `count` positions, spread over the classes as evenly as possible.

    Classes take turns in a seeded order, so any prefix of the result is balanced as well.
    """
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.unique(labels))
    queues = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
    turns = [
        queue[turn]
        for turn in range(max(map(len, queues), default=0))
        for queue in queues
        if turn < len(queue)
    ]
    return np.array(turns[:count], dtype=np.int64)


def group_near_duplicates(
    images: ImageSet, progress: Callable[[int, int], None] | None = None
) -> NDArray[np.int64]:
    """Give near-identical images of a class the same group number.

    Each image becomes a 16 x 16 greyscale thumbnail with its brightness and contrast divided out.
    Images of one class are joined when their thumbnails correlate at 0.941 or more, and so are
    images joined through others. This finds bursts, re-encodings and light edits. It does not find
    the same object seen from another angle, nor mirrored or strongly cropped copies.

    Args:
        images: The set; each image is decoded once.
        progress: Called with (done, total).

    Returns:
        The group of each image: the smallest position in it.

    Raises:
        DataError: If images cannot be decoded; the message names the first few.
    """
    thumbnails = _thumbnails(images, progress)
    parent = np.arange(len(images), dtype=np.int64)
    for label in np.unique(images.labels):
        positions = np.flatnonzero(images.labels == label)
        rows = thumbnails[positions]
        for start in range(0, len(positions), _ROWS_AT_ONCE):
            # (rows at once, images of the class); only pairs beyond the diagonal count
            close = rows[start : start + _ROWS_AT_ONCE] @ rows.T >= _DUPLICATE_CORRELATION
            for left, right in zip(*np.nonzero(np.triu(close, k=start + 1)), strict=True):
                _join(parent, int(positions[start + left]), int(positions[right]))
    return np.array([_root(parent, index) for index in range(len(parent))], dtype=np.int64)


def _thumbnails(images: ImageSet, progress: Callable[[int, int], None] | None) -> NDArray[np.float32]:
    """Return unit vectors of shape (count, 256) whose dot products are correlations."""
    vectors = np.zeros((len(images), _THUMBNAIL_SIDE**2), dtype=np.float32)
    bad: list[DataError] = []
    for index in range(len(images)):
        try:
            grey = Image.fromarray(images.image(index)).convert("L")
        except DataError as exc:
            bad.append(exc)
            if len(bad) == _MOST_BAD_IMAGES:
                break
            continue
        small = grey.resize((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BOX)
        vector = np.asarray(small, dtype=np.float32).ravel()
        vector = vector - vector.mean()
        norm = float(np.linalg.norm(vector))
        if norm > 0:  # a blank image is a duplicate of nothing
            vectors[index] = vector / norm
        if progress is not None:
            progress(index + 1, len(images))
    if bad:
        raise bad_images_error(bad, len(images))
    return vectors


def _root(parent: NDArray[np.int64], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = int(parent[index])
    return index


def _join(parent: NDArray[np.int64], left: int, right: int) -> None:
    low, high = sorted((_root(parent, left), _root(parent, right)))
    parent[high] = low
