"""Let a model take the images that kits prepare: RGB, channels first. What else it wants becomes part of the model.

Kits prepare images in C++, in JavaScript and in Python, bit for bit alike. A model that takes blue first, channels last
(TensorFlow's) or gray images gets a few operations in front instead of a fourth spelling of all three.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edgeattn.data.model_input import ModelInput
from edgeattn.data.spec import Preprocess
from edgeattn.onnx_graph import Graph

__all__ = ["plain_preprocess", "take_plain_images"]

_LUMA = (19595, 38470, 7471)
"""ITU-R 601 in 65,536ths, as Pillow's ``convert("L")`` has it; 65,536 times 255 still fits float32's 24 bits."""
_LUMA_BITS = 16
_TINY = 1 / 255
"""As a standard deviation: values are pixels of 0 to 255."""


def plain_preprocess(images: ModelInput) -> Preprocess:
    """Return how a kit prepares the images of a square model that `take_plain_images` changed."""
    parts = ((0.0,), (_TINY,)) if images.channels == "gray" else (images.mean, images.std)
    mean, std = (part * 3 if len(part) == 1 else part for part in parts)
    if images.channels == "bgr":
        mean, std = mean[::-1], std[::-1]
    return Preprocess.model_validate(
        {
            "size": images.height,
            "resize": round(images.height / images.crop_pct) if images.fit == "crop" else None,
            "interpolation": images.interpolation,
            "mean": mean,
            "std": std,
        }
    )


def take_plain_images(graph: Graph, images: ModelInput) -> bool:
    """Put in front of a model what makes its input of RGB, channels first, in place; return whether there was need.

    No value changes: gray is computed in whole numbers, as Pillow does.

    Args:
        graph: With one input, shape (1, ...) as `images` has it.
        images: What it takes.
    """
    if images.channels == "rgb" and images.layout == "nchw":
        return False
    (item,) = graph.inputs
    source, prepared = item.name, graph.fresh_name(f"{item.name}.prepared")
    readers, added = list(graph.consumers.get(source, [])), list[NodeProto]()

    def constant(part: str, value: object) -> str:
        name = graph.fresh_name(f"{prepared}.{part}")
        graph.constants[name] = np.asarray(value)
        return name

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        result = graph.fresh_name(f"{prepared}.{op.lower()}")
        while any(result in node.output for node in added):
            result = f"{result}_"
        added.append(helper.make_node(op, list(inputs), [result], result, **attributes))
        return result

    if images.channels == "bgr":
        source = add("Gather", source, constant("order", np.asarray([2, 1, 0], np.int64)), axis=1)
    elif images.channels == "gray":
        luma = constant("luma", np.asarray(_LUMA, np.float32).reshape(1, 3, 1, 1))
        half = constant("half", np.asarray([2 ** (_LUMA_BITS - 1)], np.float32))
        total = add("Conv", add("Round", source), luma, half)
        gray = add("Floor", add("Mul", total, constant("scale", np.float32(2.0**-_LUMA_BITS))))
        # In the order in which images are normalized: to 0 to 1, less the mean, by the deviation.
        scaled = add("Div", gray, constant("white", np.float32(255)))
        less = add("Sub", scaled, constant("mean", np.float32(images.mean[0])))
        source = add("Div", less, constant("std", np.float32(images.std[0])))
    if images.layout == "nhwc":
        source = add("Transpose", source, perm=[0, 2, 3, 1])
    added[-1].output[0] = prepared
    graph.inputs[0] = helper.make_tensor_value_info(
        item.name, TensorProto.FLOAT, (1, 3, images.height, images.width)
    )
    graph.reroute(item.name, prepared, readers)
    graph.nodes = [*added, *graph.nodes]
    graph.reindex()
    return True
