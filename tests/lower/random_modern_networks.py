"""Small random networks of what later mobile networks add: attention over places, norms, mixers, branches, resampling."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from random_networks import Maker, Map, RandomNetwork, Step
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ModernNetwork"]

_LARGEST_ATTENDED = 16
_LARGEST_ENLARGED = 8


class _LayerNorm(nn.Module):
    """Of the channels of every place, as ConvNeXt has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        nn.init.normal_(self.norm.weight, 1.0, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


class _ResponseNorm(nn.Module):
    """Of a channel's length among all channels', as ConvNeXt V2 has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, channels, 1, 1) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        length = x.pow(2).sum((2, 3), keepdim=True).sqrt()
        return x + self.weight * (x * (length / (length.mean(1, keepdim=True) + 1e-6)))


class _Attention(nn.Module):
    """Over places, with several heads, shared keys, cosines, a temperature or linear in the number of places."""

    def __init__(self, choice: random.Random, channels: int) -> None:
        super().__init__()
        self.heads = choice.choice([1, 2])
        self.size = choice.choice([4, 8])
        self.kind = choice.choice(["scaled", "scaled", "cosine", "shared", "linear", "relu"])
        self.temperature = choice.choice([0.3, 1.0, 1.0, 5.0, 30.0])
        self.keeps = choice.random() < 0.7
        keys = self.size if self.kind == "shared" else self.heads * self.size
        self.norm = _LayerNorm(channels) if choice.random() < 0.5 else nn.Identity()
        self.query = nn.Conv2d(channels, self.heads * self.size, 1)
        self.key, self.value = nn.Conv2d(channels, keys, 1), nn.Conv2d(channels, keys, 1)
        self.result = nn.Conv2d(self.heads * self.size, channels, 1)

    def _tokens(self, x: Tensor) -> Tensor:
        return x.flatten(2).view(x.shape[0], -1, self.size, x.shape[2] * x.shape[3]).transpose(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        query, key, value = (self._tokens(part(y)) for part in (self.query, self.key, self.value))
        if self.kind == "cosine":
            query, key = functional.normalize(query, dim=3), functional.normalize(key, dim=3)
        if self.kind == "linear":
            mixed = query.softmax(3) @ (key.softmax(2).transpose(2, 3) @ value)
        elif self.kind == "relu":
            rates = functional.relu(query) @ functional.relu(key).transpose(2, 3)
            mixed = (rates @ value) / (rates.sum(3, keepdim=True) + 1e-3)
        else:
            scores = query @ key.transpose(2, 3) * (self.size**-0.5 / self.temperature)
            mixed = scores.softmax(3) @ value
        mixed = mixed.transpose(2, 3).reshape(x.shape[0], self.heads * self.size, *x.shape[2:])
        made: Tensor = self.result(mixed)
        return x + made if self.keeps else made


class _Mixer(nn.Module):
    """Depthwise, norm, expansion, activation, projection, layer scale: ConvNeXt, FastViT, RepViT."""

    def __init__(self, choice: random.Random, channels: int) -> None:
        super().__init__()
        kernel = choice.choice([3, 5, 7])
        norm = choice.choice([nn.BatchNorm2d, _LayerNorm, lambda c: nn.GroupNorm(2, c)])
        middle = choice.choice([nn.GELU, nn.SiLU, nn.ReLU, nn.Hardswish, nn.Mish])()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels),
            norm(channels),
            nn.Conv2d(channels, 2 * channels, 1),
            middle,
            _ResponseNorm(2 * channels) if choice.random() < 0.3 else nn.Identity(),
            nn.Conv2d(2 * channels, channels, 1),
        )
        scale = torch.randn(1, channels, 1, 1) * choice.choice([0.01, 0.3, 1.0])
        self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.scale * self.body(x)
        return y


class _Branches(nn.Module):
    """Convolutions beside each other, weighed by a softmax of what the map holds: Selective Kernel, dynamic convolution."""

    def __init__(self, choice: random.Random, channels: int) -> None:
        super().__init__()
        self.count = choice.choice([2, 4])
        self.temperature = choice.choice([0.5, 1.0, 30.0])
        groups = choice.choice([1, 2, channels])
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1 + n % 2, dilation=1 + n % 2, groups=groups)
            for n in range(self.count)
        )
        self.weigh = nn.Conv2d(channels, self.count, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.weigh(x.mean((2, 3), keepdim=True)) / self.temperature).softmax(1)
        parts = [conv(x) * weights[:, n : n + 1] for n, conv in enumerate(self.convs)]
        return torch.stack(parts).sum(0) if self.count == 2 else sum(parts[1:], parts[0])


class _Statistics(nn.Module):
    """A gate of what is more than a mean: deviation, both pools, or a softmax over channels."""

    def __init__(self, choice: random.Random, channels: int) -> None:
        super().__init__()
        self.kind = choice.choice(["deviation", "both", "softmax", "energy"])
        self.conv = nn.Conv2d(channels * (2 if self.kind == "both" else 1), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        if self.kind == "energy":  # SimAM
            squares = (x - mean).pow(2)
            return x * (squares / (4 * (squares.mean((2, 3), keepdim=True) + 1e-3)) + 0.5).sigmoid()
        if self.kind == "deviation":
            pooled = ((x - mean).pow(2).mean((2, 3), keepdim=True) + 1e-5).sqrt()
        elif self.kind == "both":
            pooled = torch.cat([mean, x.amax((2, 3), keepdim=True)], 1)
        else:
            return x * (self.conv(mean).softmax(1) * x.shape[1])
        return x * self.conv(pooled).sigmoid()


class _Strip(nn.Module):
    """Convolutions along rows and columns, added: FastViT's and InceptionNeXt's long kernels."""

    def __init__(self, choice: random.Random, channels: int) -> None:
        super().__init__()
        long = choice.choice([5, 7])
        self.row = nn.Conv2d(channels, channels, (1, long), padding=(0, long // 2), groups=channels)
        self.column = nn.Conv2d(channels, channels, (long, 1), padding=(long // 2, 0), groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.row(x) + self.column(x)
        return y


class ModernNetwork(RandomNetwork):
    """Takes (N, 3, 32, 32), gives (N, 10): a `RandomNetwork` with more kinds of steps."""

    def _kinds(self) -> dict[Maker, int]:
        return {**super()._kinds(), self._block: 6, self._resample: 2, self._function: 2}

    def _block(self, choice: random.Random, source: Map, maps: list[Map]) -> tuple[int, int] | None:
        made: Callable[[random.Random, int], nn.Module] = choice.choice(
            [_Attention, _Attention, _Mixer, _Branches, _Statistics, _Strip]
        )
        if source.channels % 2 or (made is _Attention and source.side > _LARGEST_ATTENDED):
            return None
        self._take(source, made(choice, source.channels))
        return source.channels, source.side

    def _resample(self, choice: random.Random, source: Map, maps: list[Map]) -> tuple[int, int] | None:
        channels, side = source.channels, source.side
        kind = choice.choice(["bilinear", "transposed", "fold", "unfold", "reflect", "stride"])
        if kind in ("bilinear", "transposed", "fold") and side > _LARGEST_ENLARGED:
            return None
        if kind == "bilinear":
            self._take(
                source, nn.Upsample(scale_factor=2, mode="bilinear", align_corners=choice.random() < 0.3)
            )
            return channels, 2 * side
        if kind == "transposed":
            self._take(source, nn.ConvTranspose2d(channels, channels, 2, 2))
            return channels, 2 * side
        if kind == "fold" and channels % 4 == 0:
            self._take(source, nn.PixelShuffle(2))
            return channels // 4, 2 * side
        if kind == "unfold" and side % 2 == 0 and side >= 4 and channels <= 16:
            self._take(source, nn.PixelUnshuffle(2))
            return channels * 4, side // 2
        if kind == "reflect" and side >= 4:
            self._take(source, nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3)))
            return channels, side
        if kind == "stride" and side >= 4:
            self._take(source, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, 2)))
            return channels, (side - 2) // 2 + 1
        return None

    def _function(self, choice: random.Random, source: Map, maps: list[Map]) -> tuple[int, int] | None:
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "normalized": lambda x: functional.normalize(x, dim=1),
            "gated half": lambda x: functional.glu(x, 1) if x.shape[1] % 2 == 0 else x,
            "squared relu": lambda x: functional.relu(x) ** 2,
            "softmax over channels": lambda x: x * x.softmax(1),
            "logarithm": lambda x: torch.log1p(x.abs()),
            "exponential": lambda x: torch.exp(-x.abs()),
            "the larger": lambda x: torch.where(x > 0.3, x, 0.1 * x),
        }
        kind = choice.choice(list(functions))
        self._take(source, Step(functions[kind]))
        halves = kind == "gated half" and source.channels % 2 == 0
        return source.channels // (2 if halves else 1), source.side
