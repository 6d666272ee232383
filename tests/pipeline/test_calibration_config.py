"""How a recipe's network is calibrated, where something else in the recipe decides over it."""

from __future__ import annotations

from pathlib import Path

from edgeattn.pipeline_bounds import calibration_config
from edgeattn.recipe import load_recipe

QUICKSTART = Path(__file__).parents[2] / "recipes/quickstart.yaml"


def test_ptq_is_calibrated_as_asked() -> None:
    recipe = load_recipe(QUICKSTART, ["quant.mode=ptq"])
    assert calibration_config(recipe) == recipe.quant.ptq
    assert recipe.quant.ptq.pixels
    assert recipe.quant.ptq.padded_grids


def test_training_tunes_what_calibration_would() -> None:
    found = calibration_config(load_recipe(QUICKSTART))
    assert not (found.tuning_steps or found.rounding or found.bias_correction)
    assert found.pixels


def test_dla_gets_no_pads_of_quantization() -> None:
    recipe = load_recipe(QUICKSTART, ["quant.mode=ptq", "tune={rank_by: dla}", "targets=[jetson-ssh]"])
    found = calibration_config(recipe)
    assert not found.pixels
    assert not found.padded_grids
