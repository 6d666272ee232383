"""The network that is quantized: as it is, or made to read pixels where that gains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn

from edgeattn.errors import ModelError
from edgeattn.export.float_onnx import FloatExport, export_float
from edgeattn.export.pixel_module import from_pixel_input, to_pixel_input
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.pixel_input import PixelGrid, find_pixel_grid

__all__ = ["FloatNetwork", "float_network"]


@dataclasses.dataclass(frozen=True)
class FloatNetwork:
    """A float network in the form that is quantized, and what it was before.

    Attributes:
        module: Computes `export`.
        export: Canonical graph, which plans belong to.
        plain_module: Takes images as they are; `module` itself where that does so, too.
        plain_export: The graph of `plain_module`.
        grid: Of the pixels that `module` reads; None where it takes images as they are.
    """

    module: nn.Module
    export: FloatExport
    plain_module: nn.Module
    plain_export: FloatExport
    grid: PixelGrid | None = None

    @property
    def plain_model(self) -> ModelProto | None:
        """The graph before it read pixels; None where it does not."""
        return self.plain_export.model if self.grid is not None else None

    def without_pixels(self, trained: nn.Module) -> nn.Module:
        """Return a copy of `module`, trained since, as a network that takes images as they are."""
        if self.grid is None:
            return trained
        return from_pixel_input(trained, self.plain_module, self.plain_export)

    def with_pixels(self, plain: nn.Module) -> nn.Module:
        """Return what `without_pixels` made of a module in the form that is quantized.

        Raises:
            ModelError: If it is another network.
        """
        changed = to_pixel_input(plain, self.plain_export, self.grid) if self.grid is not None else plain
        if changed is None:
            raise ModelError(
                "The first layer of this network cannot read pixels: it is not the network that was."
            )
        return changed


def float_network(
    module: nn.Module, export: FloatExport, images: Sequence[NDArray[np.float32]], config: PtqConfig
) -> FloatNetwork:
    """Return a network in the form that is quantized.

    Args:
        module: Takes normalized images.
        export: Its float graph.
        images: Calibration batches (1, C, H, W).
        config: Whether pixels are wanted.
    """
    plain = FloatNetwork(module, export, module, export)
    grid = find_pixel_grid(images) if config.pixels else None
    changed = to_pixel_input(module, export, grid) if grid is not None else None
    if changed is None:
        return plain
    return FloatNetwork(changed, export_float(changed, images[0].shape), module, export, grid)
