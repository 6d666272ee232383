"""Small random networks of what mobile networks are made of, as people would bring them: an ONNX file from torch."""

from __future__ import annotations

import dataclasses
import io
import random
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Maker", "Map", "RandomNetwork", "Step", "export", "random_network"]

SIZE = 32
CLASSES = 10

_ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU,
    nn.ReLU6,
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Tanh,
    nn.GELU,
    nn.SiLU,
    nn.PReLU,
    nn.ELU,
    nn.Softplus,
    lambda: nn.Hardtanh(-1, 2),
    lambda: nn.LeakyReLU(0.2),
]
_RECTIFIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": functional.relu,
    "relu6": functional.relu6,
}
_SWISHES: dict[str, Callable[[Tensor], Tensor]] = {
    "x * (relu6(x + 3) / 6)": lambda x: x * (functional.relu6(x + 3) / 6),
    "x * relu6(x + 3) / 6": lambda x: x * functional.relu6(x + 3) / 6,
    "x * relu6(x + 3)": lambda x: x * functional.relu6(x + 3),
    "relu": functional.relu,
}


def _shuffle(x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    return (
        x.view(count, 2, channels // 2, height, width).transpose(1, 2).reshape(count, channels, height, width)
    )


@dataclasses.dataclass(frozen=True)
class Map:
    """A map that was computed: where it stands among all, its channels and its side."""

    place: int
    channels: int
    side: int


Maker = Callable[[random.Random, Map, list[Map]], tuple[int, int] | None]
"""Adds a step to a network; returns channels and side of what it makes, or None where it does not fit."""


class _Gate(nn.Module):
    """A gate of channels, as Squeeze-and-Excitation in its variants."""

    def __init__(self, choice: random.Random, channels: int) -> None:
        super().__init__()
        inner = max(4, channels // choice.choice([2, 4]))
        pool = nn.AdaptiveAvgPool2d(1) if choice.random() < 0.7 else nn.AdaptiveMaxPool2d(1)
        middle = choice.choice([nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU])()
        last = choice.choice([nn.Sigmoid, nn.Hardsigmoid, nn.Tanh])()
        self.gate = nn.Sequential(
            pool, nn.Conv2d(channels, inner, 1), middle, nn.Conv2d(inner, channels, 1), last
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class _Places(nn.Module):
    """A gate of places, as the spatial half of CBAM."""

    def __init__(self, choice: random.Random) -> None:
        super().__init__()
        kernel = choice.choice([3, 7])
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.conv(pooled).sigmoid()


class _Lines(nn.Module):
    """A gate of rows and of columns, as the authors of Coordinate Attention write it."""

    def __init__(self, choice: random.Random, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, 8, 1)
        self.rows, self.columns = nn.Conv2d(8, channels, 1), nn.Conv2d(8, channels, 1)
        self.swish = choice.choice(list(_SWISHES))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        lines = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)], 2)
        rows, columns = torch.split(_SWISHES[self.swish](self.squeeze(lines)), [height, width], 2)
        return x * self.rows(rows).sigmoid() * self.columns(columns.permute(0, 1, 3, 2)).sigmoid()


class Step(nn.Module):
    """One function of a map."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class RandomNetwork(nn.Module):
    """Takes (N, 3, 32, 32), gives (N, 10).

    Args:
        seed: Of everything that is chosen.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        choice = random.Random(seed)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.steps = nn.ModuleList()
        self.plan: list[tuple[int, int | None, str]] = []
        """By step: which map it reads, a second one, and what is done with the two."""
        maps = [Map(0, 8, SIZE // 2)]
        for _ in range(choice.randint(6, 14)):
            source = choice.choice(maps[-3:])
            kinds = self._kinds()
            made = choice.choices(list(kinds), list(kinds.values()))[0](choice, source, maps)
            if made is not None:
                maps.append(Map(len(maps), *made))
        self.head = nn.Linear(maps[-1].channels, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        maps = [self.stem(image)]
        for step, (first, second, kind) in zip(self.steps, self.plan, strict=True):
            x = maps[first]
            if second is not None:
                y = maps[second]
                x = (
                    {"add": x + y, "sub": x - y, "mul": x * y, "max": torch.maximum(x, y)}[kind]
                    if kind != "cat"
                    else torch.cat([x, y], 1)
                )
            maps.append(step(x))
        return self.head(maps[-1].mean((2, 3)))

    def _kinds(self) -> dict[Maker, int]:
        """What may be added to a map, and how often it is."""
        return {
            self._convolution: 4,
            self._activation: 2,
            self._pair: 3,
            self._attention: 3,
            self._arithmetic: 3,
            self._move: 2,
        }

    def _take(self, source: Map, step: nn.Module, second: int | None = None, kind: str = "") -> None:
        self.steps.append(step)
        self.plan.append((source.place, second, kind))

    def _convolution(self, choice: random.Random, source: Map, maps: list[Map]) -> tuple[int, int] | None:
        kernel = choice.choice([1, 3, 3, 5])
        is_depthwise = choice.random() < 0.3
        stride = choice.choice([1, 1, 2]) if source.side >= 8 else 1
        # OpenVINO forgets the pads of single pixels where they have a stride.
        padding = kernel // 2 if choice.random() < 0.8 else 0
        side = (source.side + 2 * padding - kernel) // stride + 1
        if side < 2:
            return None
        outputs = source.channels if is_depthwise else choice.choice([4, 8, 12, 16, 24])
        groups = source.channels if is_depthwise else 1
        parts: list[nn.Module] = [nn.Conv2d(source.channels, outputs, kernel, stride, padding, groups=groups)]
        if choice.random() < 0.5:
            parts.append(nn.BatchNorm2d(outputs))
        if choice.random() < 0.8:
            parts.append(choice.choice(_ACTIVATIONS)())
        self._take(source, nn.Sequential(*parts))
        return outputs, side

    def _activation(self, choice: random.Random, source: Map, maps: list[Map]) -> tuple[int, int] | None:
        self._take(source, choice.choice(_ACTIVATIONS)())
        return source.channels, source.side

    def _pair(self, choice: random.Random, source: Map, maps: list[Map]) -> tuple[int, int] | None:
        kind = choice.choice(["add", "add", "sub", "mul", "max", "cat"])
        found = [
            item
            for item in maps
            if item.side == source.side
            and item is not source
            and (kind == "cat" or item.channels == source.channels)
        ]
        if not found:
            return None
        other = choice.choice(found)
        self._take(source, Step(_RECTIFIERS[choice.choice(list(_RECTIFIERS))]), other.place, kind)
        return source.channels + (other.channels if kind == "cat" else 0), source.side

    def _attention(self, choice: random.Random, source: Map, maps: list[Map]) -> tuple[int, int] | None:
        made = choice.choice(["channels", "places", "lines"])
        if made == "places":
            self._take(source, _Places(choice))
        else:
            self._take(source, (_Gate if made == "channels" else _Lines)(choice, source.channels))
        return source.channels, source.side

    def _arithmetic(self, choice: random.Random, source: Map, maps: list[Map]) -> tuple[int, int] | None:
        number = choice.choice([3.0, -0.5, 0.5, 2.0, 6.0])
        low, high = choice.choice([(0.0, 6.0), (-1.0, 1.0), (-3.0, 3.0), (0.0, 1.0), (0.5, 4.0)])
        rectify = _RECTIFIERS[choice.choice(list(_RECTIFIERS))]
        functions: list[Callable[[Tensor], Tensor]] = [
            lambda x: rectify(x + number),
            lambda x: rectify(x * number),
            lambda x: x / number,
            lambda x: x.clamp(low, high),
        ]
        self._take(source, Step(choice.choice(functions)))
        return source.channels, source.side

    def _move(self, choice: random.Random, source: Map, maps: list[Map]) -> tuple[int, int] | None:
        channels, side = source.channels, source.side
        kind = choice.choice(["max", "average", "same", "shuffle", "half", "larger"])
        if kind in ("max", "average") and side >= 4:
            pool = functional.max_pool2d if kind == "max" else functional.avg_pool2d
            self._take(source, Step(lambda x: pool(x, 2)))
            return channels, side // 2
        if kind == "same":
            self._take(source, Step(lambda x: functional.max_pool2d(x, 3, 1, 1)))
            return channels, side
        if kind == "shuffle" and channels % 2 == 0:
            self._take(source, Step(_shuffle))
            return channels, side
        if kind == "half" and channels % 2 == 0:
            self._take(source, Step(lambda x: x.chunk(2, 1)[1]))
            return channels // 2, side
        if kind == "larger" and side <= 8:
            self._take(source, nn.Upsample(scale_factor=2))
            return channels, 2 * side
        return None


def random_network(
    seed: int, images: Tensor, kind: Callable[[int], RandomNetwork] = RandomNetwork
) -> RandomNetwork:
    """Return a network whose batch norms have the statistics of some images (N, 3, 32, 32)."""
    torch.manual_seed(seed)
    network = kind(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = None
    with torch.no_grad():
        network.train()(images)
    return network.eval()


def export(network: nn.Module) -> bytes:
    """Return the ONNX file that torch's exporter makes of a network for one image."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, SIZE, SIZE),),
            buffer,
            dynamo=False,
            input_names=["image"],
            output_names=["scores"],
            opset_version=17,
        )
    return buffer.getvalue()
