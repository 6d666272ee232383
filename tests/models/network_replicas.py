"""Networks of other people, rebuilt for these tests with the structure that matters here.

torchvision and timm are not dependencies, and the authors' repositories are not installed: these have the
module names, nesting and order of calls of the originals, and nothing else of them.
"""

from __future__ import annotations

import torch
from torch import nn

# expansion, channels, blocks, stride: MobileNetV2
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv_bn(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(i, o, k, stride, (k - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(o),
    ]
    return nn.Sequential(*layers, nn.ReLU6()) if act else nn.Sequential(*layers)


# ------------------------------------------------------------------------------- the authors' attention


class EcaLayer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        k = 1 if channels < 96 else 3
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return x * z.sigmoid()[:, :, None, None]


class CoordLayer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        mip = max(8, channels // 32)
        self.conv1 = nn.Conv2d(channels, mip, 1)
        self.bn1 = nn.BatchNorm2d(mip)
        self.conv2 = nn.Conv2d(mip, channels, 1)
        self.conv3 = nn.Conv2d(mip, channels, 1)

    def squeeze(self, x: torch.Tensor) -> torch.Tensor:
        z = self.bn1(self.conv1(x))
        return z * nn.functional.relu6(z + 3) / 6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a_h = self.conv2(self.squeeze(x.mean(3, keepdim=True))).sigmoid()
        a_w = self.conv3(self.squeeze(x.mean(2, keepdim=True))).sigmoid()
        return x * a_w * a_h


class TripletGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Module()
        self.spatial.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.spatial.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.stack([x.max(1)[0], x.mean(1)], dim=1)
        return x * self.spatial.bn(self.spatial.conv(z)).sigmoid()


class TripletLayer(nn.Module):
    def __init__(self, _channels: int) -> None:
        super().__init__()
        self.ChannelGateH = TripletGate()
        self.ChannelGateW = TripletGate()
        self.SpatialGate = TripletGate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.ChannelGateH(x.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
        second = self.ChannelGateW(x.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
        return (first + second + self.SpatialGate(x)) / 3


# ------------------------------------------------------------------------------------------ MobileNetV2


class NestedBlock(nn.Module):
    """torchvision's InvertedResidual; the ECA and Triplet authors append their layer to `conv`."""

    def __init__(self, i: int, o: int, stride: int, t: int, layer: type[nn.Module] | None) -> None:
        super().__init__()
        self.use_res_connect = stride == 1 and i == o
        layers: list[nn.Module] = [conv_bn(i, i * t, 1)] if t != 1 else []
        layers += [conv_bn(i * t, i * t, stride=stride, groups=i * t), nn.Conv2d(i * t, o, 1, bias=False)]
        layers.append(nn.BatchNorm2d(o))
        if layer is not None:
            layers.append(layer(o))
        self.conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class FlatBlock(nn.Module):
    """The Coordinate Attention authors' block: one flat Sequential, `identity` for the residual."""

    def __init__(self, i: int, o: int, stride: int, t: int, layer: type[nn.Module] | None) -> None:
        super().__init__()
        self.identity = stride == 1 and i == o
        layers: list[nn.Module] = [*conv_bn(i, i * t, 1)] if t != 1 else []
        layers += [*conv_bn(i * t, i * t, stride=stride, groups=i * t)]
        if t != 1 and layer is not None:
            layers.append(layer(i * t))
        layers += [nn.Conv2d(i * t, o, 1, bias=False), nn.BatchNorm2d(o)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.identity else self.conv(x)


class ReplicaMobileNetV2(nn.Module):
    """torchvision's MobileNetV2, the ECA and Triplet authors' (`layer`), or the CA authors' (`flat`)."""

    def __init__(
        self, layer: type[nn.Module] | None = None, *, flat: bool = False, classes: int = 10
    ) -> None:
        super().__init__()
        self.flat = flat
        features: list[nn.Module] = [conv_bn(3, 32, stride=2)]
        channels = 32
        for t, c, n, s in STAGES:
            for index in range(n):
                block = FlatBlock if flat else NestedBlock
                features.append(block(channels, c, s if index == 0 else 1, t, layer))
                channels = c
        if flat:
            self.conv = conv_bn(320, 1280, 1)
        else:
            features.append(conv_bn(320, 1280, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(1280, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        if self.flat:
            x = self.conv(x)
        return self.classifier(x.mean((2, 3)))


# ------------------------------------------------------------------------------------------- MBConv, timm


class ReplicaSe(nn.Module):
    """torchvision's SqueezeExcitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, 4, 1)
        self.fc2 = nn.Conv2d(4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc2(self.fc1(self.avgpool(x)).relu()).sigmoid()


class ReplicaMbConv(nn.Module):
    """torchvision's MBConv: `block`, then stochastic depth, then the residual add."""

    def __init__(self, i: int, o: int, t: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(i, i * t, 1)] if t != 1 else []
        layers += [conv_bn(i * t, i * t, groups=i * t), ReplicaSe(i * t), conv_bn(i * t, o, 1, act=False)]
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = nn.Identity()
        self.use_res_connect = i == o

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stochastic_depth(self.block(x))
        return x + y if self.use_res_connect else y


class BatchNormAct2d(nn.BatchNorm2d):
    """timm's norm with its activation inside."""

    def __init__(self, channels: int, act: bool = True) -> None:
        super().__init__(channels)
        self.act = nn.ReLU6() if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(super().forward(x))


class TimmSeparable(nn.Module):
    """timm's DepthwiseSeparableConv."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(i, i, 3, 1, 1, groups=i, bias=False)
        self.bn1 = BatchNormAct2d(i)
        self.se = nn.Identity()
        self.conv_pw = nn.Conv2d(i, o, 1, bias=False)
        self.bn2 = BatchNormAct2d(o, act=False)
        self.drop_path = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop_path(self.bn2(self.conv_pw(self.se(self.bn1(self.conv_dw(x))))))


class TimmInverted(nn.Module):
    """timm's InvertedResidual."""

    def __init__(self, i: int, o: int, *, se: bool) -> None:
        super().__init__()
        mid = 4 * i
        self.conv_pw = nn.Conv2d(i, mid, 1, bias=False)
        self.bn1 = BatchNormAct2d(mid)
        self.conv_dw = nn.Conv2d(mid, mid, 3, 1, 1, groups=mid, bias=False)
        self.bn2 = BatchNormAct2d(mid)
        self.se = ReplicaSe(mid) if se else nn.Identity()
        self.conv_pwl = nn.Conv2d(mid, o, 1, bias=False)
        self.bn3 = BatchNormAct2d(o, act=False)
        self.drop_path = nn.Identity()
        self.has_skip = i == o

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(self.conv_pw(x))
        y = self.conv_pwl(self.se(self.bn2(self.conv_dw(y))))
        y = self.drop_path(self.bn3(y))
        return x + y if self.has_skip else y


def network_of(*blocks: nn.Module, channels: int) -> nn.Sequential:
    """A classifier around some blocks."""
    return nn.Sequential(
        conv_bn(3, 8, stride=2),
        nn.Sequential(*blocks),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 5),
    )


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics as if it had been trained; return the model in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.weight, 0.7, 1.3),
                    (module.bias, -0.2, 0.2),
                    (module.running_mean, -0.2, 0.2),
                    (module.running_var, 0.5, 1.5),
                ):
                    if tensor is not None:
                        values = torch.rand(tensor.shape, generator=generator) * (high - low) + low
                        tensor.copy_(values)
    return model.eval()
