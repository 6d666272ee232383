"""Spatial transformer (arXiv 1506.02025).

A localisation network reads the image and gives six numbers, an affine map theta from places in the output to
places in the input; the output is sampled there, bilinearly and with zeros outside. Coordinates run
from -1 to 1 over the pixels' outer edges. Shapes: (N, C, H, W) in and out; theta (N, 2, 3).

Localisation: two 3x3 convolutions with stride 2 and ReLU, the mean over grid x grid cells, two fully connected layers.
The last starts at zero with the identity as its bias.

Deviations: the paper leaves the localisation network open. `mode="attention"` is its equation (2): one
scale and a shift.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from edgeattn.attention.base import EdgeForm, Mechanism
from edgeattn.attention.mapwise import FixedAverage, check_choice, check_count

__all__ = ["SpatialTransformer"]


class SpatialTransformer(Mechanism):
    """Spatial transformer, keys ``conv1``, ``conv2``, ``fc1``, ``fc2``.

    Args:
        channels: Channels of the image.
        width: Channels of the localisation network.
        grid: Rows and columns of its last map.
        hidden: Width between its fully connected layers.
        mode: ``"affine"``: six numbers. ``"attention"``: scale and shift, three numbers.

    Raises:
        RecipeError: If an option's value is not valid.
    """

    kind = "stn"

    def __init__(
        self,
        channels: int,
        *,
        width: int = 16,
        grid: int = 4,
        hidden: int = 32,
        mode: Literal["affine", "attention"] = "affine",
    ) -> None:
        super().__init__(channels)
        check_count("stn", "width", width)
        check_count("stn", "grid", grid)
        check_count("stn", "hidden", hidden)
        self.mode = check_choice("stn", "mode", mode, ("affine", "attention"))
        self.grid = grid
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.relu = nn.ReLU()
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(grid)
        self.fc1 = nn.Conv2d(width, hidden, grid)
        self.fc2 = nn.Conv2d(hidden, 6 if mode == "affine" else 3, 1)
        self.start_as_identity()

    def start_as_identity(self) -> None:
        """Make the module return its input (up to rounding) until it is trained."""
        with torch.no_grad():
            self.fc2.weight.zero_()
            if self.fc2.bias is not None:
                identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0] if self.mode == "affine" else [1.0, 0.0, 0.0]
                self.fc2.bias.copy_(torch.tensor(identity))

    def theta(self, x: torch.Tensor) -> torch.Tensor:
        """Return the affine maps, shape (N, 2, 3), for images (N, C, H, W)."""
        return _theta(self, x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform `x`, shape (N, C, H, W)."""
        grid = functional.affine_grid(self.theta(x), list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, align_corners=False)

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _TransformerEdge(self, height, width, form)


def _theta(module: SpatialTransformer | _TransformerEdge, x: torch.Tensor) -> torch.Tensor:
    y = module.relu(module.conv2(module.relu(module.conv1(x))))
    numbers: torch.Tensor = module.fc2(module.relu(module.fc1(module.pool(y))))
    if module.mode == "affine":
        return numbers.reshape(-1, 2, 3)
    flat = numbers.reshape(-1, 3)
    scale, shift_x, shift_y = flat.narrow(1, 0, 1), flat.narrow(1, 1, 1), flat.narrow(1, 2, 1)
    nothing = scale * 0.0
    return torch.cat([scale, nothing, shift_x, nothing, scale, shift_y], dim=1).reshape(-1, 2, 3)


class _TransformerEdge(EdgeForm):
    """The grid as one MatMul with constant places, then GridSample."""

    places: torch.Tensor

    def __init__(self, source: SpatialTransformer, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.mode, self.relu = source.mode, source.relu
        self.conv1, self.conv2, self.fc1, self.fc2 = source.conv1, source.conv2, source.fc1, source.fc2
        like = source.fc2.weight
        # Two layers with stride 2
        rows, columns = ((size + 3) // 4 for size in (height, width))
        self.pool = FixedAverage(rows, columns, source.grid, like)
        identity = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], dtype=torch.float64)
        grid = functional.affine_grid(identity, [1, 1, height, width], align_corners=False).reshape(1, -1, 2)
        places = torch.cat([grid, torch.ones_like(grid[:, :, :1])], dim=2)
        self.register_buffer("places", places.to(like), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        grid = self.places @ _theta(self, x).transpose(1, 2)
        grid = grid.reshape(-1, self.height, self.width, 2)
        return functional.grid_sample(x, grid, align_corners=False)
