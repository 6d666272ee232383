"""A classifier that somebody brought as an ONNX file, with a softmax at its end, and photographs for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto
from PIL import Image
from quant_networks import Builder

from edgeattn.data.model_input import ImageOptions
from edgeattn.pipeline import quantize_onnx
from edgeattn.quant.config import PtqConfig

NAMES = ("left turn", "right turn", "Stoppschild", "信号")
QUICK = PtqConfig(nncf=False, tuning_steps=0, rounding=False, range_estimator="minmax")


def classifier(*, softmax: bool = True, gray: bool = False, channels_last: bool = False) -> ModelProto:
    b = Builder(3)
    image = b.node("Transpose", ["input"], "image", perm=[0, 3, 1, 2]) if channels_last else "input"
    x = b.node("Relu", [b.conv(image, "stem", 1 if gray else 3, 8, kernel=3)], "stem_act")
    x = b.node("Relu", [b.conv(x, "middle", 8, 8)], "middle_act")
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x], "pool")], "flat")
    b.constant("w", 6 * np.random.default_rng(1).standard_normal((8, len(NAMES))))
    x = b.node("MatMul", [x, "w"], "scores")
    answer = b.node("Softmax", [x], "probabilities") if softmax else x
    return b.model(answer, (1, len(NAMES)), 1 if gray else 3, channels_last=channels_last)


def photographs(folder: Path) -> Path:
    folder.mkdir()
    for index in range(20):
        random = np.random.default_rng(index)
        pixels = np.clip(random.normal(random.integers(40, 220, 3), 30, (40, 52, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02}.png")
    return folder


def quantized(
    folder: Path,
    *,
    options: ImageOptions | None = None,
    softmax: bool = True,
    gray: bool = False,
    channels_last: bool = False,
    targets: Sequence[str] = ("ort-cpu",),
) -> Path:
    model = classifier(softmax=softmax, gray=gray, channels_last=channels_last)
    onnx.save(model, str(folder / "my net v2.onnx"))
    quantize_onnx(
        folder / "my net v2.onnx",
        photographs(folder / "photographs"),
        folder / "out",
        targets=targets,
        config=QUICK,
        image_options=options,
    )
    return folder / "out"
