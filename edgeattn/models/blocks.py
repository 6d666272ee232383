"""Parts that the networks share."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Classifier", "ConvBnAct", "ExplicitSwish", "make_activation", "round_channels"]


class ExplicitSwish(nn.Module):
    """Swish as the two operations that graphs spell it with, so that each can be quantized."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x * sigmoid(x)``."""
        return x * torch.sigmoid(x)


_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu6": nn.ReLU6,
    "relu": nn.ReLU,
    "swish": nn.SiLU,
    "h_swish": nn.Hardswish,
}


def make_activation(name: str) -> nn.Module:
    """Return a new activation module; in place, since nothing else reads its input."""
    return _ACTIVATIONS[name](inplace=True)


def round_channels(channels: float, divisor: int = 8) -> int:
    """Return the nearest multiple of `divisor`, at least `divisor`, not below 90 % of `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class ConvBnAct(nn.Sequential):
    """Convolution (key ``0``), batch norm (``1``) and, unless None, an activation (``2``)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: str | None,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                (kernel_size - 1) // 2,
                groups=groups,
                bias=False,
            ),
            nn.BatchNorm2d(out_channels),
        ]
        if activation is not None:
            layers.append(make_activation(activation))
        super().__init__(*layers)


class Classifier(nn.Module):
    """Base of the networks: `features`, global average, `classifier`.

    Subclasses fill in `features` and `classifier`; both are part of torchvision's key layout.
    """

    features: nn.Sequential
    classifier: nn.Sequential

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify `x`, shape (N, 3, H, W); return logits (N, num_classes)."""
        y: torch.Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return y

    def init_weights(self) -> None:
        """Initialize as in the reference implementations: He normal by fan-out, classifier narrow."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)
