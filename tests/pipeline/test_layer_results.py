"""What a report says of the inside of a network: whether calibration saw what the network will see."""

from __future__ import annotations

import numpy as np
import pytest
from quant_networks import inverted_residual, pictures

from edgeattn.pipeline_layers import domain_result
from edgeattn.quant.config import RANGES_ONLY
from edgeattn.quant.ptq import make_plan


def test_images_of_one_kind_are_alike_and_dark_ones_are_not() -> None:
    model = inverted_residual()
    calibration = pictures(24, seed=1)
    plan = make_plan(model, calibration, RANGES_ONLY)
    evaluation = np.concatenate(pictures(40, seed=2))
    same = domain_result(model, plan, calibration, evaluation)
    dark = domain_result(model, plan, calibration, evaluation * 0.3)
    assert same is not None
    assert dark is not None
    assert (same.calibration_images, same.evaluation_images) == (24, 40)
    assert same.warning is None
    assert dark.warning is not None
    assert dark.distance > 5 * same.distance
    assert "unlike the evaluation images" in dark.warning
    assert set(dark.tensors) <= set(plan.activations)


@pytest.mark.parametrize("counts", [(4, 40), (24, 4)])
def test_too_few_images_tell_nothing(counts: tuple[int, int]) -> None:
    model = inverted_residual()
    calibration, evaluation = pictures(counts[0]), np.concatenate(pictures(counts[1], seed=2))
    plan = make_plan(model, calibration, RANGES_ONLY)
    assert domain_result(model, plan, calibration, evaluation) is None
