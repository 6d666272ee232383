"""Sets from one domain are alike, sets from two are not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeattn.measure.domain import LARGEST_CHANCE, compare_domains

NAMES = [f"tensor{index}" for index in range(20)]


def _extents(count: int, seed: int, *, factor: float = 1.0) -> NDArray[np.float64]:
    """Extents that vary together, as those of one network do: bright images are large everywhere."""
    random = np.random.default_rng(seed)
    common = random.normal(size=(count, 1)) * 0.3
    return np.exp2(factor * (common + random.normal(size=(count, len(NAMES))) * 0.4))


def test_sets_of_one_domain_are_alike_but_for_chance() -> None:
    found = [compare_domains(NAMES, _extents(40, 2 * n), _extents(32, 2 * n + 1), seed=n) for n in range(40)]
    assert not any(item.is_unlike for item in found)
    assert sum(item.p_value <= 10 * LARGEST_CHANCE for item in found) <= 10
    assert max(item.distance for item in found) < 0.05


def test_another_scale_of_a_few_tensors_is_found_and_named() -> None:
    other = _extents(32, 1)
    other[:, [3, 7, 11]] *= 2.0
    found = compare_domains(NAMES, _extents(40, 0), other)
    assert found.is_unlike
    assert {name for name, _ in found.tensors} == {"tensor3", "tensor7", "tensor11"}
    assert all(gap < -0.5 for _, gap in found.tensors)
    assert found.counts == (40, 32)


def test_another_spread_is_found_though_means_agree() -> None:
    assert compare_domains(NAMES, _extents(48, 0), _extents(48, 1, factor=3.0)).is_unlike


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_images_without_any_difference_are_alike(value: float) -> None:
    same = np.full((8, len(NAMES)), value)
    found = compare_domains(NAMES, same, same)
    assert found.distance == 0
    assert not found.is_unlike


def test_a_small_difference_among_many_images_is_no_alarm() -> None:
    found = compare_domains(NAMES, _extents(400, 0), _extents(400, 1) * 1.1)
    assert found.p_value <= LARGEST_CHANCE
    assert not found.is_unlike
