"""Vision Transformer encoder, over patches of space or over channels (arXiv 2010.11929, 2205.01580).

Pre-norm layers: ``t = t + attention(norm(t))``, ``t = t + mlp(norm(t))``, tokens (N, L, D). Position encoding
as in SimpleViT: fixed sines and cosines, no class token.

Over space: a patch of the map is a token (a p x p convolution with stride p embeds it); behind the encoder a
linear layer and a pixel shuffle make a map of it, which is added to the input.
Over channels: a channel is a token (its map, averaged to grid x grid cells, is embedded); behind the encoder a
linear layer and a sigmoid make the channel's gate.

Deviations: a ViT classifies; what leads from a map to tokens and back (the paragraph above) is this
module's. The MLP has the paper's GELU, in its exact form.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import nn

from edgeattn.attention.base import Attention
from edgeattn.attention.mapwise import FixedAverage, check_choice, check_count, map_size, zero_layer
from edgeattn.errors import ModelError, RecipeError

__all__ = ["VisionTransformer", "sine_positions"]


def sine_positions(rows: int, columns: int, width: int) -> torch.Tensor:
    """Return SimpleViT's position encoding (rows * columns, width), in float64.

    A quarter each of sines and cosines of the column, and of the row, at falling frequencies.
    """
    quarter = width // 4
    omega = torch.arange(quarter, dtype=torch.float64) / max(1, quarter - 1)
    omega = 1.0 / 10000.0**omega
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    row, column = row.reshape(-1, 1) * omega, column.reshape(-1, 1) * omega
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)


class _Layer(nn.Module):
    """One pre-norm layer on tokens (N, L, D)."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.norm1 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, mlp_width)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(mlp_width, width)

    def run(self, tokens: torch.Tensor, count: int) -> torch.Tensor:
        """Apply the layer to `count` tokens."""
        normed = self.norm1(tokens)
        split = (-1, count, self.heads, self.width // self.heads)
        query, key, value = (layer(normed).reshape(split) for layer in (self.query, self.key, self.value))
        # On the keys, (L, d): smaller than the scores.
        scores = query.transpose(1, 2) @ (key.permute(0, 2, 3, 1) * split[3] ** -0.5)
        read = (scores.softmax(-1) @ value.transpose(1, 2)).transpose(1, 2)
        tokens = tokens + self.proj(read.reshape(-1, count, self.width))
        mlp: torch.Tensor = self.fc2(self.gelu(self.fc1(self.norm2(tokens))))
        return tokens + mlp


class _Positions(nn.Module):
    """Adds the position encoding of one size."""

    table: torch.Tensor

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + self.table


class _AnyPositions(nn.Module):
    """Adds the position encoding of whatever size comes."""

    def forward(self, tokens: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        return tokens + sine_positions(rows, columns, tokens.shape[2]).to(tokens)


class VisionTransformer(Attention):
    """ViT encoder, keys ``embed``, ``layers.*``, ``norm``, ``head``.

    Args:
        channels: Channels of the map.
        over: What the tokens are.
        patch_size: Rows and columns of a patch, over space.
        grid: Rows and columns that a channel's map is averaged to, over channels.
        width: Of a token; a multiple of 4 and of `heads`.
        heads: Of the attention.
        depth: Layers.
        mlp_ratio: Width inside the MLP, in token widths.

    Raises:
        RecipeError: If an option's value is not valid.
    """

    kind = "vit"
    absorbs_input_scale: ClassVar[bool] = False

    def __init__(
        self,
        channels: int,
        *,
        over: Literal["space", "channels"] = "space",
        patch_size: int = 1,
        grid: int = 4,
        width: int = 64,
        heads: int = 4,
        depth: int = 1,
        mlp_ratio: int = 2,
    ) -> None:
        super().__init__(channels)
        self.over = check_choice("vit", "over", over, ("space", "channels"))
        self.patch_size = check_count("vit", "patch_size", patch_size)
        self.grid = check_count("vit", "grid", grid)
        self.heads = check_count("vit", "heads", heads)
        self.token_width = check_count("vit", "width", width, 4)
        if width % heads or width % 4:
            raise RecipeError(f"width of vit must be a multiple of 4 and of heads={heads}, got {width}.")
        check_count("vit", "depth", depth)
        check_count("vit", "mlp_ratio", mlp_ratio)
        self.embed: nn.Module
        if over == "space":
            self.embed = nn.Conv2d(channels, width, patch_size, patch_size)
            self.pool: nn.Module = nn.Identity()
            self.head = nn.Linear(width, channels * patch_size**2)
        else:
            self.embed = nn.Linear(grid**2, width)
            self.pool = nn.AdaptiveAvgPool2d(grid)
            self.head = nn.Linear(width, 1)
        self.positions: nn.Module = _AnyPositions()
        self.layers = nn.ModuleList(_Layer(width, heads, width * mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Encode; also the edge form's formula."""
        if self.over == "channels":
            tokens = self.embed(self.pool(x).reshape(-1, self.channels, self.grid**2))
            encoded = _encode(self, tokens, 1, self.channels)
            gate: torch.Tensor = self.head(encoded).sigmoid().reshape(-1, self.channels, 1, 1)
            return x * self.apply_factor(gate)
        height, width = map_size(self, x)
        rows, columns, patch = height // self.patch_size, width // self.patch_size, self.patch_size
        tokens = self.embed(x).reshape(-1, self.token_width, rows * columns).transpose(1, 2)
        encoded = self.head(_encode(self, tokens, rows, columns)).transpose(1, 2)
        added = encoded.reshape(-1, self.channels * patch**2, rows, columns)
        return x + (nn.functional.pixel_shuffle(added, patch) if patch > 1 else added)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode `x`, shape (N, C, H, W).

        Raises:
            ModelError: If the map is not made of whole patches.
        """
        self._check_patches(x.shape[2], x.shape[3])
        return self.compute(x)

    def _check_patches(self, height: int, width: int) -> None:
        if self.over == "space" and (height % self.patch_size or width % self.patch_size):
            raise ModelError(
                f"vit cuts maps into patches of {self.patch_size}x{self.patch_size}, and {height}x{width} is not "
                "made of whole ones. Choose a patch_size that divides both."
            )

    def _zero_gates(self) -> float:
        zero_layer(self.head)
        return 1.0 if self.over == "space" else 0.5

    def absorb(self, input_scale: float, gain: float = 1.0) -> float:
        """See the base; over space nothing is multiplied, so there is no gain to hand on.

        Raises:
            ModelError: If the input is to be scaled.
        """
        remainder = super().absorb(input_scale, gain)
        if self.over == "space":
            self.gain = 1.0
            return 1.0
        return remainder

    def _static_parts(self, height: int, width: int, form: str) -> dict[str, nn.Module]:
        self._check_patches(height, width)
        like = self.norm.weight
        if self.over == "channels":
            table = sine_positions(1, self.channels, self.token_width)
            pool: dict[str, nn.Module] = {"pool": FixedAverage(height, width, self.grid, like)}
        else:
            table = sine_positions(height // self.patch_size, width // self.patch_size, self.token_width)
            pool = {}
        return {"positions": _Positions(table.to(like)), **pool}


def _encode(module: Any, tokens: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Run the encoder of a float or an edge form."""
    static = isinstance(module.positions, _Positions)
    tokens = module.positions(tokens) if static else module.positions(tokens, rows, columns)
    for layer in module.layers:
        tokens = layer.run(tokens, rows * columns)
    result: torch.Tensor = module.norm(tokens)
    return result
