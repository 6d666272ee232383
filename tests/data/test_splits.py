"""Splits are seeded, stratified, and keep near-identical images together."""

from __future__ import annotations

import numpy as np
import pytest

from edgeattn.data import ImageSet
from edgeattn.data.splits import group_near_duplicates, select_balanced, split_indices
from edgeattn.errors import DataError

LABELS = np.repeat(np.arange(4), (10, 20, 40, 5))


def test_a_split_is_a_stratified_partition() -> None:
    train, validation = split_indices(LABELS, 0.2, seed=0)
    assert sorted([*train, *validation]) == list(range(len(LABELS)))
    assert np.bincount(LABELS[validation]).tolist() == [2, 4, 8, 1]


def test_equal_seeds_give_equal_splits_and_others_do_not() -> None:
    first, again, other = (split_indices(LABELS, 0.2, seed=seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_class_is_on_both_sides_even_when_tiny() -> None:
    labels = np.repeat(np.arange(3), 2)
    for share in (0.01, 0.99):
        train, validation = split_indices(labels, share, seed=0)
        assert set(labels[train]) == set(labels[validation]) == {0, 1, 2}


def test_a_class_of_one_image_stays_in_train() -> None:
    labels = np.array([0] * 5 + [1])
    for seed in range(10):
        assert 5 in split_indices(labels, 0.5, seed)[0]


def test_one_image_for_each_class_is_divided_as_one_pool() -> None:
    train, validation = split_indices(np.arange(600), 0.6667, seed=0)
    assert (len(train), len(validation)) == (200, 400)


def test_nothing_to_divide_is_refused() -> None:
    with pytest.raises(DataError, match="one side would be empty"):
        split_indices(np.array([0]), 0.5, seed=0)


def test_groups_are_never_divided() -> None:
    labels = np.repeat([0, 1], 30)
    groups = np.arange(60) // 5
    for seed in range(5):
        train, validation = split_indices(labels, 0.34, seed, groups)
        assert not set(groups[train]) & set(groups[validation])
        assert np.bincount(labels[validation]).tolist() == [10, 10]


def test_a_group_larger_than_the_share_still_leaves_both_sides() -> None:
    labels = np.array([0] * 10 + [1] * 10)
    groups = np.array([0] * 9 + [9] + list(range(10, 20)))
    train, validation = split_indices(labels, 0.2, 0, groups)
    assert 9 in validation
    assert 0 in train


def test_balanced_selection_takes_turns() -> None:
    chosen = select_balanced(LABELS, 16, seed=0)
    assert len(set(chosen.tolist())) == 16
    assert np.bincount(LABELS[chosen]).tolist() == [4, 4, 4, 4]
    assert np.bincount(LABELS[chosen[:4]]).tolist() == [1, 1, 1, 1]
    everything = select_balanced(LABELS, len(LABELS), seed=0)
    assert sorted(everything.tolist()) == list(range(len(LABELS)))


def test_bursts_and_edits_are_one_group_and_other_images_are_not() -> None:
    rng = np.random.default_rng(0)
    pictures = [np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))) for _ in range(6)]
    brighter = np.clip(pictures[0] * 0.8 + 40, 0, 255)
    grainy = np.clip(pictures[1] + rng.normal(0, 8, pictures[1].shape), 0, 255)
    blank = [np.full((64, 64, 3), 90), np.full((64, 64, 3), 90)]
    pixels = np.stack([*pictures, brighter, grainy, *blank]).astype(np.uint8)
    groups = group_near_duplicates(ImageSet.from_array(pixels, [0] * len(pixels)))
    assert groups.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 8, 9]
    labels = [0] * 6 + [1] * 4
    assert group_near_duplicates(ImageSet.from_array(pixels, labels)).tolist() == list(range(10))


def test_duplicates_are_joined_through_others() -> None:
    """A, B and B, C are close; A, C need not be."""
    rng = np.random.default_rng(3)
    first, last = rng.integers(40, 216, (2, 16, 16, 1))
    steps = [first + (last - first) * share for share in np.linspace(0, 0.9, 8)]
    pixels = np.repeat(np.stack(steps).astype(np.uint8), 3, axis=3)
    assert set(group_near_duplicates(ImageSet.from_array(pixels, [0] * 8)).tolist()) == {0}
