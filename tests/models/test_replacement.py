"""Insertion and replacement refuse mechanisms of other contracts."""

from __future__ import annotations

import pytest

from edgeattn.errors import RecipeError
from edgeattn.models import create_model, replace_convolutions


def test_a_map_is_no_convolution() -> None:
    model = create_model("mobilenet_v2", num_classes=3, width=0.35)
    with pytest.raises(RecipeError, match="'se' does not take the place of a convolution"):
        replace_convolutions(model, "se")
