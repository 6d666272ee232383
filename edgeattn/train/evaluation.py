"""Measure a module's top-1 on images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from edgeattn.data.image_set import ImageSet
from edgeattn.data.pixels import iterate_batches
from edgeattn.data.preprocess import normalize_pixels
from edgeattn.data.spec import Preprocess
from edgeattn.errors import DataError, ModelError

__all__ = ["EvalResult", "evaluate", "module_device"]


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """What a module answered.

    Attributes:
        top1: Share of images whose largest logit is the label's, in [0, 1].
        n: Number of images.
        logits: float32 of shape (n, classes).
    """

    top1: float
    n: int
    logits: NDArray[np.float32]


def module_device(model: nn.Module) -> torch.device:
    """Return where the module's first parameter or buffer lies; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def evaluate(
    model: nn.Module,
    images: NDArray[np.float32] | NDArray[np.uint8] | ImageSet,
    labels: NDArray[np.int64] | None = None,
    *,
    batch_size: int = 64,
    preprocess: Preprocess | None = None,
    size: int | None = None,
) -> EvalResult:
    """Run a module in evaluation mode; every submodule's mode is put back afterwards.

    Args:
        model: Takes float32 NCHW and returns logits of shape (batch, classes).
        images: float32 of shape (n, 3, size, size), used as it is; uint8 of shape (n, size, size, 3) as
            `load_pixels` returns; or an image set, decoded as it goes.
        labels: Class indices of shape (n,); an image set brings its own.
        batch_size: Images for each forward pass.
        preprocess: Needed unless `images` is float32.
        size: Edge in pixels to which images are resized after preprocessing; None leaves them as they are.

    Raises:
        DataError: If there are no images, or labels or preprocessing are missing or do not fit.
        ModelError: If the module's output is not logits for these labels.
    """
    if labels is None:
        if not isinstance(images, ImageSet):
            raise DataError("Arrays of images need labels. Give labels of shape (n,).")
        labels = images.labels
    if len(images) != len(labels) or not len(labels):
        raise DataError(f"Got {len(images)} images and {len(labels)} labels; expected as many, at least one.")
    device = module_device(model)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    logits: list[NDArray[np.float32]] = []
    try:
        with torch.no_grad():
            for inputs in _inputs(images, preprocess, batch_size):
                output = model(resize_inputs(torch.from_numpy(inputs).to(device), size))
                logits.append(check_logits(output, int(labels.max()) + 1).float().cpu().numpy())
    finally:
        for module, training in modes.items():
            module.training = training
    answers = np.concatenate(logits)
    correct = int((answers.argmax(axis=1) == labels).sum())
    return EvalResult(correct / len(labels), len(labels), answers)


def resize_inputs(inputs: torch.Tensor, size: int | None) -> torch.Tensor:
    """Return images of shape (n, 3, height, width) with edges of `size` pixels; as they are for None."""
    if size is None:
        return inputs
    return F.interpolate(inputs, (size, size), mode="bilinear", antialias=True)


def check_logits(output: object, classes: int) -> torch.Tensor:
    """Return a module's output if it is logits for at least `classes` classes.

    Raises:
        ModelError: If it is anything else.
    """
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelError(f"The model must return logits of shape (batch, classes), got {shape}.")
    if output.shape[1] < classes:
        raise ModelError(
            f"The model returns {output.shape[1]} classes, the labels need {classes}. "
            "Build the model with the data's number of classes."
        )
    return output


def _inputs(
    images: NDArray[np.float32] | NDArray[np.uint8] | ImageSet, preprocess: Preprocess | None, batch_size: int
) -> Iterator[NDArray[np.float32]]:
    if isinstance(images, ImageSet):
        for inputs, _ in iterate_batches(images, _needed(preprocess), batch_size):
            yield inputs
        return
    if images.ndim != 4:
        raise DataError(f"Images must have four dimensions, got shape {images.shape}. Stack them first.")
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        if batch.dtype == np.uint8:
            yield normalize_pixels(np.asarray(batch, dtype=np.uint8), _needed(preprocess))
        else:
            yield np.array(batch, dtype=np.float32, order="C")


def _needed(preprocess: Preprocess | None) -> Preprocess:
    if preprocess is None:
        raise DataError("8-bit images need the network's preprocessing (mean, std). Give preprocess.")
    return preprocess
