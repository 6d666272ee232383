"""The mechanisms as their authors' code computes them, operation by operation: what a peer would deploy."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["AUTHORS_MODULES", "put_authors_modules"]


class _HSwish(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (functional.relu6(x + 3) / 6)


class AuthorsCoord(nn.Module):
    """Adaptive pools, a permute, one joined squeeze, a split, another permute."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, channels // 32)
        self.pool_h = nn.AdaptiveAvgPool2d((None, 1))
        self.pool_w = nn.AdaptiveAvgPool2d((1, None))
        self.conv1 = nn.Conv2d(channels, squeezed, 1)
        self.bn1 = nn.BatchNorm2d(squeezed)
        self.conv2 = nn.Conv2d(squeezed, channels, 1)
        self.conv3 = nn.Conv2d(squeezed, channels, 1)
        self.relu = _HSwish()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = int(x.shape[2]), int(x.shape[3])
        joined = torch.cat([self.pool_h(x), self.pool_w(x).permute(0, 1, 3, 2)], dim=2)
        rows, columns = torch.split(self.relu(self.bn1(self.conv1(joined))), [height, width], dim=2)
        gate_h = self.conv2(rows).sigmoid().expand(-1, -1, height, width)
        gate_w = self.conv3(columns.permute(0, 1, 3, 2)).sigmoid().expand(-1, -1, height, width)
        return x * gate_w * gate_h


class AuthorsEca(nn.Module):
    """A 1-D convolution over the transposed vector of means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        from edgeattn.attention.eca import paper_kernel_size

        size = paper_kernel_size(channels)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        row = self.conv(self.avg_pool(x).squeeze(-1).transpose(-1, -2))
        return x * row.transpose(-1, -2).unsqueeze(-1).sigmoid().expand_as(x)


class _TripletGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * self.bn(self.conv(pooled)).sigmoid()


class AuthorsTriplet(nn.Module):
    """Three gated copies of the map, two of them permuted there and back, averaged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cw, self.hc, self.hw = _TripletGate(), _TripletGate(), _TripletGate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.cw(x.permute(0, 2, 1, 3).contiguous()).permute(0, 2, 1, 3).contiguous()
        second = self.hc(x.permute(0, 3, 2, 1).contiguous()).permute(0, 3, 2, 1).contiguous()
        return 1 / 3 * (self.hw(x) + first + second)


class AuthorsSe(nn.Module):
    """torchvision's spelling: an adaptive pool and two 1x1 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, channels // 16)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc2(functional.relu(self.fc1(self.avgpool(x)))).sigmoid()


class AuthorsCbam(nn.Module):
    """The MLP of linear layers runs once for each pool; then max and mean over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // 16)
        self.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels)
        )
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = (int(x.shape[2]), int(x.shape[3]))
        summed = self.mlp(functional.avg_pool2d(x, size)) + self.mlp(functional.max_pool2d(x, size))
        y = x * summed.sigmoid().unsqueeze(2).unsqueeze(3).expand_as(x)
        pooled = torch.cat((torch.max(y, 1)[0].unsqueeze(1), torch.mean(y, 1).unsqueeze(1)), dim=1)
        return y * self.bn(self.conv(pooled)).sigmoid()


AUTHORS_MODULES: dict[str, type[nn.Module]] = {
    "coord": AuthorsCoord,
    "eca": AuthorsEca,
    "triplet": AuthorsTriplet,
    "se": AuthorsSe,
    "cbam": AuthorsCbam,
}


def put_authors_modules(model: nn.Module) -> nn.Module:
    """Replace every attention module of this package by its authors' form, in place."""
    from edgeattn.attention.base import Attention

    for path, module in list(model.named_modules()):
        if isinstance(module, Attention):
            parent, _, name = path.rpartition(".")
            made = AUTHORS_MODULES[module.kind](module.channels)
            setattr(model.get_submodule(parent), name, made.train(module.training))
    return model
