"""A graph over which OpenVINO's CPU plugin ends the process."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def joined_maps(*, shifted: bool) -> onnx.ModelProto:
    """Two quantized maps, joined and quantized again. Added to a number, OpenVINO 2026.4 crashes over them."""
    nodes, constants = [], {"z": np.uint8(100), "number": np.float32(3)}

    def pair(source: str, name: str, scale: float) -> str:
        constants[f"{name}.s"] = np.float32(scale)
        nodes.append(helper.make_node("QuantizeLinear", [source, f"{name}.s", "z"], [f"{name}.q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", f"{name}.s", "z"], [name]))
        return name

    nodes.append(helper.make_node("Concat", [pair("x", "a", 0.05), pair("y", "b", 0.02)], ["c"], axis=1))
    last = pair("c", "d", 0.05)
    if shifted:
        nodes.append(helper.make_node("Add", [last, "number"], ["t"]))
        last = pair("t", "e", 0.06)
    nodes.append(helper.make_node("Identity", [last], ["result"]))
    graph = helper.make_graph(
        nodes,
        "joined",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 8, 8, 8)) for name in ("x", "y")],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, (1, 16, 8, 8))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model
