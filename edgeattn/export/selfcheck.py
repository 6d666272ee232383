"""The exporter's check of itself: torch's fake quantization against the QDQ graph, integer by integer.

Both are quantized at the same tensors. The graph runs from one quantized tensor to the next, each time
from the integers that torch had, so that a difference is found where it arises and does not hide behind
what came before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from edgeattn.errors import ModelError, ParityError
from edgeattn.export.fake_quant import FakeQuantized, ObservedQuantizer
from edgeattn.quant.segments import SegmentRunner

__all__ = ["CHECK_IMAGES", "SelfCheck", "check_export"]

_OUTPUT = ""
# Share of the largest logit. A weight that lies on a tie may round either way, which is one step of one
# weight; a wrong weight, scale or bias is far more.
_OUTPUT_TOLERANCE = 5e-3

_BATCH = 8

CHECK_IMAGES = 32
"""Inputs that an export is checked with."""


@dataclasses.dataclass(frozen=True)
class SelfCheck:
    """How torch and the graph compare.

    Attributes:
        tensors: Quantized tensors compared.
        images: Inputs compared.
        largest_lsb: Largest difference of integers.
        share_different: Share of integers that differ at all.
    """

    tensors: int
    images: int
    largest_lsb: int
    share_different: float


def check_export(
    quantized: FakeQuantized,
    model: ModelProto,
    images: Sequence[NDArray[np.float32]],
    progress: Callable[[int, int], None] | None = None,
) -> SelfCheck:
    """Compare a fake-quantized module with the QDQ graph emitted from it.

    Args:
        quantized: From `attach_fake_quant`.
        model: The QDQ graph of the same plan and profile.
        images: Inputs (1, C, H, W).
        progress: Called with (done, total) tensors.

    Raises:
        ParityError: If any integer differs by more than 1; the message names the tensor.
    """
    runner = SegmentRunner(model, images)
    expected = _torch_integers(quantized, images)
    ends = [f"{name}.quantized" for name in quantized.activations]
    largest, different, total = 0, 0, 0
    output = runner.graph.output_names[0]
    for done, end in enumerate(runner.segments([*ends, output]), start=1):
        if end == output:
            _check_output(output, [values[end] for values in runner.values], expected)
            break
        name = end.removesuffix(".quantized")
        for values, wanted in zip(runner.values, expected, strict=True):
            gap = np.abs(values[end].astype(np.int32) - wanted[name].astype(np.int32))
            if gap.max() > 1:
                raise ParityError(
                    f"Export check: at {name!r} the QDQ graph and torch's fake quantization differ by "
                    f"{int(gap.max())} steps (at most 1 is rounding), in {np.mean(gap > 1):.2%} of the values. "
                    "The export is not used. This is a defect of the exporter for this network; please report it."
                )
            largest = max(largest, int(gap.max()))
            different += int(np.count_nonzero(gap))
            total += gap.size
            values[end] = wanted[name]
        if progress:
            progress(done, len(ends))
    return SelfCheck(len(ends), len(images), largest, different / max(total, 1))


def _check_output(
    output: str, got: Sequence[NDArray[np.generic]], expected: Sequence[dict[str, NDArray[np.generic]]]
) -> None:
    """Compare the float output, computed from the same integers."""
    for value, wanted in zip(got, expected, strict=True):
        reference = wanted[_OUTPUT].astype(np.float64)
        gap = float(np.abs(value.astype(np.float64) - reference).max())
        if gap > _OUTPUT_TOLERANCE * max(1.0, float(np.abs(reference).max())):
            raise ParityError(
                f"Export check: the output {output!r} differs from torch's fake quantization by {gap:.3g}, "
                "though all that leads to it agrees. The export is not used. This is a defect of the exporter "
                "for this network; please report it."
            )


def _torch_integers(
    quantized: FakeQuantized, images: Sequence[NDArray[np.float32]]
) -> list[dict[str, NDArray[np.generic]]]:
    """Return the integers of every quantized tensor, and the output, image by image.

    Images go through torch together where every tensor then has a row for each of them: a network that keeps its batch
    elsewhere, or fixes it at one, takes them one by one.
    """
    single = _run_torch(quantized, images[0])
    result = [single]
    for start in range(1, len(images), _BATCH):
        group = images[start : start + _BATCH]
        result += _split(_run_batch(quantized, group), single, len(group)) or [
            _run_torch(quantized, image) for image in group
        ]
    return result


def _run_batch(
    quantized: FakeQuantized, images: Sequence[NDArray[np.float32]]
) -> dict[str, NDArray[np.generic]] | None:
    try:
        return _run_torch(quantized, np.concatenate(images))
    except (RuntimeError, ModelError):  # a shape, or the operations, are those of one image
        return None


def _split(
    found: dict[str, NDArray[np.generic]] | None, single: dict[str, NDArray[np.generic]], count: int
) -> list[dict[str, NDArray[np.generic]]]:
    """Return a row of every tensor for each image, or nothing where a tensor has no such rows."""
    shapes = {
        name: (count * value.shape[0], *value.shape[1:]) for name, value in single.items() if value.ndim
    }
    if found is None or any(value.shape != shapes.get(name) for name, value in found.items()):
        return []
    rows = {name: np.split(value, count) for name, value in found.items()}
    return [{name: values[index] for name, values in rows.items()} for index in range(count)]


def _run_torch(quantized: FakeQuantized, images: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
    with torch.no_grad():
        output = quantized.module(torch.from_numpy(images))
    found: dict[str, NDArray[np.generic]] = {_OUTPUT: output.numpy()}
    for name, quantizer in quantized.activations.items():
        if not isinstance(quantizer, ObservedQuantizer) or quantizer.integers is None:
            raise ParityError(f"Export check: nothing was quantized at {name!r}; the hook was not reached.")
        found[name] = quantizer.integers
    return found
