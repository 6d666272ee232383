"""Small networks in which fusions work: necks on the features of a MobileNetV2, and what two criteria train."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgeattn.attention.aff import AttentionalFusion
from edgeattn.attention.asff import AdaptiveSpatialFusion
from edgeattn.attention.fpn import FeaturePyramid
from edgeattn.attention.info_nce import InfoNce
from edgeattn.attention.panet import PathAggregation
from edgeattn.attention.proto_align import PrototypeAlignment, PrototypeHead
from edgeattn.models.create import create_model
from edgeattn.models.example import Example

__all__ = ["MobileFeatures", "aff", "asff", "fpn", "info_nce", "panet", "proto_align"]

_SIZE, _WIDTH, _OUT, _CLASSES, _EMBEDDING = 64, 0.35, 32, 10, 64


class MobileFeatures(nn.Module):
    """The maps of a MobileNetV2 at strides 8, 16 and 32.

    Attributes:
        channels: Of the three.
    """

    def __init__(self) -> None:
        super().__init__()
        network = create_model("mobilenet_v2", num_classes=2, width=_WIDTH)
        features = list(network.get_submodule("features").children())
        self.stages = nn.ModuleList(
            nn.Sequential(*features[first:end]) for first, end in ((0, 7), (7, 14), (14, 18))
        )
        shape = torch.zeros(1, 3, _SIZE, _SIZE)
        self.channels = [int(item.shape[1]) for item in self.eval()(shape)]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps, finest first."""
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class PlainFeatures(nn.Module):
    """Maps at three strides by one convolution each: what a fusion is measured behind.

    Random weights in all of a MobileNetV2 would lose more in INT8 than any fusion of what it gives.

    Args:
        channels: Of the maps.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(_OUT, count, 3, 1 << level, 1), nn.ReLU())
            for level, count in enumerate(channels)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of (N, 32, H, W), finest first."""
        return [level(x) for level in self.levels]


class NeckClassifier(nn.Module):
    """Features, a neck, and one prediction from the means of what it returns."""

    def __init__(self, neck: nn.Module, features: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.features, self.neck = features, neck
        self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(1) for _ in channels)
        self.classify = nn.Conv2d(sum(channels), _CLASSES, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify (N, 3, 64, 64)."""
        found = self.neck(self.features(images))
        maps = [found] if isinstance(found, torch.Tensor) else found
        means = [pool(item) for pool, item in zip(self.pools, maps, strict=True)]
        logits: torch.Tensor = self.classify(torch.cat(means, 1) if len(means) > 1 else means[0])
        return logits.flatten(1)


class TwoViews(nn.Module):
    """AFF of two convolutions of one map, as it replaces the sum of a residual block.

    Args:
        features: Give the map as the second of their list.
        channels: Of that map.
    """

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features = features
        self.near = nn.Conv2d(channels, channels, 1)
        self.far = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.fuse = AttentionalFusion(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Conv2d(channels, _CLASSES, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify (N, 3, 64, 64)."""
        x = self.features(images)[1]
        logits: torch.Tensor = self.classify(self.pool(self.fuse(self.near(x), self.far(x))))
        return logits.flatten(1)


class Segmenter(nn.Module):
    """Few-shot segmentation with known prototypes, of the first map of `features`."""

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features = features
        self.head = PrototypeHead(torch.randn(3, channels))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Segment (N, 3, 64, 64) into (N, 3, 8, 8)."""
        logits: torch.Tensor = self.head(self.features(images)[0])
        return logits


class Embedder(nn.Module):
    """What InfoNCE trains: the third map of `features`, and a projection of two layers."""

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.project = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, _EMBEDDING, 1)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed (N, 3, 64, 64) as (N, 64)."""
        embedding: torch.Tensor = self.project(self.pool(self.features(images)[2]))
        return embedding.flatten(1)


_SHAPE = (1, 3, _SIZE, _SIZE)
_ALONE = (1, _OUT, 16, 16)


def _maps(channels: Sequence[int]) -> list[torch.Tensor]:
    return [torch.randn(2, count, 8 >> level, 8 >> level) for level, count in enumerate(channels)]


def _neck(neck: nn.Module, features: MobileFeatures, out: Sequence[int]) -> Example:
    return Example(
        NeckClassifier(neck, features, out),
        _SHAPE,
        neck,
        (_maps(features.channels),),
        alone=NeckClassifier(neck, PlainFeatures(features.channels), out),
        alone_shape=_ALONE,
    )


def fpn() -> Example:
    """Return an FPN with P6 on MobileNetV2."""
    features = MobileFeatures()
    return _neck(FeaturePyramid(features.channels, _OUT, extra_levels=1), features, [_OUT] * 4)


def panet() -> Example:
    """Return a PANet on MobileNetV2."""
    features = MobileFeatures()
    return _neck(PathAggregation(features.channels, _OUT), features, [_OUT] * 3)


def asff() -> Example:
    """Return the fusion into the middle level of MobileNetV2."""
    features = MobileFeatures()
    return _neck(AdaptiveSpatialFusion(features.channels, 1), features, [features.channels[1]])


def aff() -> Example:
    """Return the fusion of two convolutions of a map."""
    features = MobileFeatures()
    channels = features.channels[1]
    network = TwoViews(features, channels)
    inputs = (torch.randn(2, channels, 4, 4), torch.randn(2, channels, 4, 4))
    alone = TwoViews(PlainFeatures(features.channels), channels)
    return Example(network, _SHAPE, network.fuse, inputs, alone=alone, alone_shape=_ALONE)


def proto_align() -> Example:
    """Return few-shot segmentation with known prototypes; the criterion itself stays in training."""
    features = MobileFeatures()
    masks = (torch.rand(2, 2, 8, 8) > 0.6).float()
    inputs = (torch.randn(2, 16, 8, 8), masks, torch.randn(2, 16, 8, 8))
    return Example(
        Segmenter(features, features.channels[0]),
        _SHAPE,
        PrototypeAlignment(),
        inputs,
        alone=Segmenter(PlainFeatures(features.channels), features.channels[0]),
        alone_shape=_ALONE,
    )


def info_nce() -> Example:
    """Return the network that the criterion trains; the criterion itself stays in training."""
    features = MobileFeatures()
    return Example(
        Embedder(features, features.channels[2]),
        _SHAPE,
        InfoNce(),
        (torch.randn(8, _EMBEDDING), torch.randn(8, _EMBEDDING)),
        alone=Embedder(PlainFeatures(features.channels), features.channels[2]),
        alone_shape=_ALONE,
    )
