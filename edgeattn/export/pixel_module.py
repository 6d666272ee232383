"""The torch side of `edgeattn.quant.pixel_input`: a network whose first convolution goes back to pixels."""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from edgeattn.export.canonical import WeightOrigin
from edgeattn.export.fake_quant import fixed_constants, module_path
from edgeattn.export.float_onnx import FloatExport
from edgeattn.onnx_graph import Graph
from edgeattn.quant.pixel_input import PixelGrid, pixel_weights, reader_of_image

__all__ = ["PixelConv2d", "from_pixel_input", "to_pixel_input"]


class PixelConv2d(nn.Conv2d):
    """A convolution of an image that multiplies its weights with pixels.

    Computes what `origin` computes (see `edgeattn.quant.pixel_input`). Its weights are divided by `factor`, and its bias,
    which it always has, takes what `shift` adds.

    Args:
        origin: What it stands for.
        grid: Of the images.
    """

    factor: torch.Tensor
    shift: torch.Tensor

    def __init__(self, origin: nn.Conv2d, grid: PixelGrid) -> None:
        super().__init__(
            origin.in_channels,
            origin.out_channels,
            cast("tuple[int, int]", origin.kernel_size),
            cast("tuple[int, int]", origin.stride),
            dilation=cast("tuple[int, int]", origin.dilation),
            device=origin.weight.device,
        )
        self.low, self.high = grid.low, grid.high
        down, right = cast("tuple[int, int]", origin.padding)
        self.border = (right, right, down, down)
        for name, values in (("factor", grid.factor), ("shift", grid.shift)):
            value = torch.from_numpy(values.astype(np.float32).reshape(1, -1, 1, 1))
            self.register_buffer(name, value.to(origin.weight.device), persistent=False)
        bias = np.zeros(origin.out_channels, np.float32) if origin.bias is None else _array(origin.bias)
        self.write(*pixel_weights(_array(origin.weight), bias, grid))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Convolve normalized images (N, C, H, W)."""
        if any(self.border):
            image = functional.pad(image, self.border)
        pixels = torch.clamp(image * self.factor + self.shift, self.low, self.high)
        result: torch.Tensor = self._conv_forward(pixels, self.weight, self.bias)
        return result

    def write(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        """Take a weight (O, C, kh, kw) and a bias (O,) for pixels."""
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(weight))
            cast("nn.Parameter", self.bias).copy_(torch.from_numpy(bias))

    def plain(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weight and the bias with which an ordinary convolution of images computes the same."""
        taken = (self.weight * self.shift).flatten(1).sum(1)
        return (self.weight * self.factor).detach(), (cast("nn.Parameter", self.bias) + taken).detach()


def to_pixel_input(module: nn.Module, export: FloatExport, grid: PixelGrid) -> nn.Module | None:
    """Return a copy of a network that reads pixels; None where the image is not read by one plain convolution alone.

    Args:
        module: Takes normalized images.
        export: Its float graph.
        grid: Of the images.
    """
    found = _reader(module, export)
    if found is None or found[1].in_channels != len(grid.steps):
        return None
    result = copy.deepcopy(module)
    _replace(result, found[0], PixelConv2d(found[1], grid))
    return result


def from_pixel_input(pixels: nn.Module, module: nn.Module, export: FloatExport) -> nn.Module:
    """Return the network that takes images as they are, with the weights that its copy for pixels has now.

    Args:
        pixels: What `to_pixel_input` returned, perhaps trained since.
        module: The network before.
        export: Its float graph.
    """
    result = copy.deepcopy(pixels)
    found = _reader(module, export)
    if found is None:
        return result
    path, layer, origin = found
    weight, bias = cast("PixelConv2d", pixels.get_submodule(path)).plain()
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.weight.copy_(weight)
        if plain.bias is not None:
            plain.bias.copy_(bias)
        else:
            norm = cast("nn.BatchNorm2d", result.get_submodule(module_path(origin.norm)))
            cast("torch.Tensor", norm.running_mean).sub_(bias)
    _replace(result, path, plain)
    return result


def _reader(module: nn.Module, export: FloatExport) -> tuple[str, nn.Conv2d, WeightOrigin] | None:
    """Return the path of the convolution that alone reads the image, the layer, and its origin in the graph."""
    node = reader_of_image(Graph(export.model))
    if (
        node is None
        or node.input[1] not in export.weights
        or set(node.input) & fixed_constants(module, export)
    ):
        return None
    origin = export.weights[node.input[1]]
    layer = dict(module.named_modules()).get(module_path(origin.operation))
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    if layer.bias is None and not origin.norm:
        return None  # nothing holds what the shift adds
    return module_path(origin.operation), layer, origin


def _replace(module: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    layer.train(module.training)
    setattr(module.get_submodule(parent), name, layer)


def _array(parameter: torch.Tensor) -> NDArray[np.float32]:
    value: NDArray[np.float32] = parameter.detach().cpu().numpy()
    return value
