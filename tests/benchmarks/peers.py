"""What other tools make of the same network: NNCF on torch, NNCF on ONNX, ONNX Runtime's own quantizer."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["PEERS", "export_plain"]

Images = Sequence[NDArray[np.float32]]


def export_plain(module: nn.Module, image: NDArray[np.float32]) -> onnx.ModelProto:
    """Export as a user of torch would."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.from_numpy(image),),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            output_names=["logits"],
        )
    return onnx.load_model_from_string(buffer.getvalue())


def _nncf_torch(module: nn.Module, images: Images, folder: Path) -> onnx.ModelProto:
    import nncf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = nncf.Dataset([torch.from_numpy(image) for image in images])
        return export_plain(nncf.quantize(module.eval(), dataset, subset_size=len(images)), images[0])


def _nncf_onnx(module: nn.Module, images: Images, folder: Path) -> onnx.ModelProto:
    import nncf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = nncf.Dataset([{"input": image} for image in images])
        quantized: onnx.ModelProto = nncf.quantize(
            export_plain(module, images[0]), dataset, subset_size=len(images)
        )
    return quantized


def _ort_static(module: nn.Module, images: Images, folder: Path) -> onnx.ModelProto:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._left, None)
            return None if image is None else {"input": image}

    plain, prepared, result = (folder / f"ort-{part}.onnx" for part in ("plain", "prepared", "quantized"))
    onnx.save(export_plain(module, images[0]), str(plain))
    quantization.quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(result),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )
    return onnx.load(str(result))


PEERS: dict[str, Callable[[nn.Module, Images, Path], onnx.ModelProto]] = {
    "nncf-torch": _nncf_torch,
    "nncf-onnx": _nncf_onnx,
    "ort-quantize-static": _ort_static,
}
"""Name -> from a module in its authors' form to a quantized ONNX model."""

logging.getLogger("nncf").setLevel(logging.ERROR)
# NNCF compiles its quantizers at first use; where that took more than its minute, a peer was missing from the table.
os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "600")
