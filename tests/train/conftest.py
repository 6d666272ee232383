from __future__ import annotations

import pytest
from torch import nn
from train_task import build_arrays, build_model

from edgeattn.train import TrainArrays


@pytest.fixture
def model() -> nn.Module:
    return build_model()


@pytest.fixture
def arrays() -> TrainArrays:
    return build_arrays()
