"""Point-wise spatial attention (PSANet, Zhao et al., ECCV 2018; authors' code: hszhao/PSANet).

Each position i predicts a map of weights for the positions around it. Collect: ``z_i = sum_j a_i[j - i] v_j``, what i
wants from everybody. Distribute: ``z_i = sum_j b_j[i - j] v_j``, what everybody wants i to know. v is the map
reduced by a 1x1 convolution; both results are joined and projected back. Shapes: (N, C, H, W); predicted
weights (N, M M, H, W) for M x M neighbours (`mask_size`), spread to (N, HW, HW).

The paper predicts over (2H - 1) x (2W - 1) places, so that every position reaches every other; that fixes
H and W in the parameters. `mask_size` is the authors' ``mask_h`` = ``mask_w``: what lies farther away has
weight zero, and with M >= 2 max(H, W) - 1 nothing does. Sums are divided by M M, as in their code.

Deviations: in the authors' head the result is concatenated with the map; here it is added to it.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeattn.attention.base import EdgeForm
from edgeattn.attention.layers import check_kernel_size
from edgeattn.attention.mapwise import Additive, ScaledConv, check_count, conv_norm, zero_layer

__all__ = ["PointwiseSpatialAttention"]


def _places(height: int, width: int, mask_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for (to, from) of all pairs which predicted weight links them, and whether one does.

    Entry [j, i] says where, in the mask that position i predicts, position j lies.
    """
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    reach = mask_size // 2
    down = rows[:, None] - rows[None, :] + reach
    right = columns[:, None] - columns[None, :] + reach
    inside = (down >= 0) & (down < mask_size) & (right >= 0) & (right < mask_size)
    return (down * mask_size + right) * inside, inside


class PointwiseSpatialAttention(Additive):
    """PSA, keys ``reduce.*``, ``collect.*``, ``distribute.*``, ``proj.{0,1}``.

    Args:
        channels: Channels of the map.
        reduction: Ratio of `channels` to the width inside.
        mask_size: Rows and columns of the weights that a position predicts; odd.

    Raises:
        RecipeError: If the reduction is not positive or the mask's size not odd.
    """

    kind = "psa"

    def __init__(self, channels: int, *, reduction: int = 4, mask_size: int = 13) -> None:
        super().__init__(channels)
        self.inner = max(1, channels // check_count("psa", "reduction", reduction))
        self.mask_size = check_kernel_size(mask_size)
        self.reduce = nn.Sequential(*conv_norm(channels, self.inner), nn.ReLU())
        self.collect = self._make_branch()
        self.distribute = self._make_branch()
        self.proj = nn.Sequential(*conv_norm(2 * self.inner, channels))

    def _make_branch(self) -> nn.Sequential:
        last = nn.Conv2d(self.inner, self.mask_size**2, 1, bias=False)
        return nn.Sequential(*conv_norm(self.inner, self.inner), nn.ReLU(), last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add attention to `x`, shape (N, C, H, W)."""
        batch, _, height, width = x.shape
        place, inside = (part.to(x.device) for part in _places(height, width, self.mask_size))
        index = place.expand(batch, -1, -1)
        v = self.reduce(x)
        flat = v.flatten(2)
        # [j, i]: what i predicts for j
        of_target = self.collect(v).flatten(2).gather(1, index) * inside
        of_source = self.distribute(v).flatten(2).gather(1, index) * inside
        read = torch.cat([flat @ of_target, flat @ of_source.transpose(1, 2)], dim=1)
        read = (read / self.mask_size**2).unflatten(2, (height, width))
        y: torch.Tensor = x + self.proj(read)
        return y

    def _zero_output(self) -> None:
        zero_layer(self.proj[1])

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _PointwiseSpatialEdge(self, height, width, form)


class _PointwiseSpatialEdge(EdgeForm):
    """The weights are spread by one Gather with constant indices each, in the order the product reads."""

    collect_index: torch.Tensor
    distribute_index: torch.Tensor
    inside: torch.Tensor | None

    def __init__(self, source: PointwiseSpatialAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.inner, self.mask_size = source.inner, source.mask_size
        self.reduce, self.collect, self.distribute = source.reduce, source.collect, source.distribute
        first = source.proj[0]
        if not isinstance(first, nn.Conv2d):
            raise TypeError(f"proj.0 was replaced by {type(first).__name__}.")
        self.proj = nn.Sequential(ScaledConv(first, 1.0 / self.mask_size**2), source.proj[1])
        place, inside = _places(height, width, self.mask_size)
        positions = height * width
        own = torch.arange(positions)
        # Element [j, i] of the (HW, HW) weights, in the flattened (M M, HW) prediction.
        self.register_buffer("collect_index", (place * positions + own).reshape(-1), persistent=False)
        distribute = (place * positions + own).T.reshape(-1)
        self.register_buffer("distribute_index", distribute.contiguous(), persistent=False)
        # Symmetric: whether j is within reach of i does not depend on the order.
        mask = None if bool(inside.all()) else inside.to(first.weight).unsqueeze(0)
        self.register_buffer("inside", mask, persistent=False)

    def _spread(self, predicted: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        positions = self.height * self.width
        flat = predicted.reshape(-1, self.mask_size**2 * positions)
        weights = flat.index_select(1, index).reshape(-1, positions, positions)
        return weights if self.inside is None else weights * self.inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        v = self.reduce(x)
        flat = v.reshape(-1, self.inner, self.height * self.width)
        of_target = self._spread(self.collect(v), self.collect_index)
        of_source = self._spread(self.distribute(v), self.distribute_index)
        read = torch.cat([flat @ of_target, flat @ of_source], dim=1)
        y: torch.Tensor = x + self.proj(read.reshape(-1, 2 * self.inner, self.height, self.width))
        return y
