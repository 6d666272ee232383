"""From (fp32 ONNX + QuantPlan + profile) to a QDQ ONNX.

Weights become int8 initializers behind one DequantizeLinear per output channel. Every planned
activation gets one QuantizeLinear/DequantizeLinear pair. A clip that the quantized range already
implies disappears, because otherwise runtimes do not fuse the convolution with its quantization.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, checker, helper

from edgeattn.errors import ModelError
from edgeattn.export.extents import attach_extents
from edgeattn.onnx_graph import Graph, clip_bounds, mark_clip, take_pads
from edgeattn.quant.apply import apply_plan_constants
from edgeattn.quant.channel_order import apply_channel_orders
from edgeattn.quant.folding import fold_zero_points
from edgeattn.quant.plan import Profile, QuantParams, QuantPlan, quantize_weight
from edgeattn.quant.rounding import channel_axis

__all__ = ["emit_qdq"]


def emit_qdq(
    model: ModelProto, plan: QuantPlan, profile: Profile, *, reorders_channels: bool = True
) -> ModelProto:
    """Spell `plan` on the canonical fp32 graph it belongs to.

    Args:
        model: Canonical fp32 ONNX.
        plan: Names tensors of that graph.
        profile: ``"s8"`` or ``"u8"``.
        reorders_channels: Whether channels are in the plan's order, which engines are made for, or in that of `model`,
            whose tensors can then be compared with the result's one by one.

    Raises:
        ModelError: If the plan names a tensor that the graph does not have.
    """
    graph = Graph(model)
    known = set(graph.producer) | set(graph.input_names) | set(graph.constants)
    strangers = sorted((set(plan.activations) | set(plan.weights)) - known)
    if strangers:
        raise ModelError(
            f"The plan names {len(strangers)} tensors that the graph lacks, first {strangers[0]!r}. "
            "A plan belongs to one graph: calibrate this one."
        )
    apply_plan_constants(graph, plan, profile)
    if profile == "s8":
        fold_zero_points(graph, plan)
    written = apply_channel_orders(graph, plan.channel_orders) if reorders_channels else {}
    for name, values in plan.weights.items():
        scales = np.asarray(values, np.float32)
        _quantize_constant(graph, name, scales[written[name]] if name in written else scales)
    for name, wanted in plan.activations.items():
        if wanted.is_quantized(profile):
            params = wanted.params(profile)
            clips = _absorb_clip(graph, name, params)
            if profile == "s8" and params.zero_point:
                _shift_clip(graph, name, params.zero_point * params.scale)
                _insert_pair(graph, name, dataclasses.replace(params, zero_point=0), clips=clips)
                _pad_integers(graph, name, params.zero_point)
            else:
                _insert_pair(graph, name, params, clips=clips)
    graph.remove_unused()
    graph.sort()
    for node in graph.nodes:
        node.name = node.output[0]
    result = graph.to_model()
    attach_extents(result, plan.extents)
    checker.check_model(result, full_check=True)
    return result


def _shift_clip(graph: Graph, name: str, shift: float) -> None:
    """Move the bounds of a clip that the range does not imply, as the biases move its values."""
    node = graph.producer[name]
    if node.op_type not in ("Clip", "Relu"):
        return
    bounds = clip_bounds(graph, node)
    if bounds is None:
        raise ModelError(
            f"The bounds of {node.name!r} are computed by the model. Export it with constant ones."
        )
    inputs = [node.input[0]]
    for end, bound in zip(("low", "high"), bounds, strict=True):
        inputs.append("")
        if math.isfinite(bound):
            inputs[-1] = graph.fresh_name(f"{name}.{end}")
            graph.constants[inputs[-1]] = np.asarray(bound + shift, np.float32)
    graph.replace(node, helper.make_node("Clip", inputs, [name], name=node.name))


def _pad_integers(graph: Graph, name: str, zero: int) -> None:
    """Put pads of the integer that stands for zero before convolutions that would pad with that of the zero point."""
    pair = graph.producer[f"{name}.dequantized"]
    for reader in list(graph.consumers.get(pair.output[0], [])):
        sides = take_pads(reader) if reader.op_type == "Conv" else []
        if not any(sides):
            continue
        top, left, bottom, right = sides
        padded, result = (graph.fresh_name(f"{name}.{part}") for part in ("padded", "padded.dequantized"))
        amounts, value = (graph.fresh_name(f"{padded}.{part}") for part in ("amounts", "value"))
        graph.constants[amounts] = np.asarray([0, 0, top, left, 0, 0, bottom, right], np.int64)
        graph.constants[value] = np.asarray(zero, np.int8)
        graph.add(
            [
                helper.make_node("Pad", [pair.input[0], amounts, value], [padded]),
                helper.make_node("DequantizeLinear", [padded, *pair.input[1:]], [result]),
            ]
        )
        reader.input[0] = result
        graph.reindex()


def _quantize_constant(graph: Graph, name: str, scales: NDArray[np.float32]) -> None:
    axis = channel_axis(graph, name)
    graph.constants[f"{name}.quantized"] = quantize_weight(graph.constants[name], scales, axis)
    graph.constants[f"{name}.scale"] = scales
    graph.constants[f"{name}.zero_point"] = np.zeros(scales.shape, np.int8)
    result = f"{name}.dequantized"
    users = list(graph.consumers[name])
    dequantize = helper.make_node(
        "DequantizeLinear",
        [f"{name}.quantized", f"{name}.scale", f"{name}.zero_point"],
        [result],
        axis=axis,
    )
    graph.add([dequantize], place=0)
    graph.reroute(name, result, users)


def _absorb_clip(graph: Graph, name: str, params: QuantParams) -> bool:
    """Remove the clip that writes `name`, or the bounds of it, where the range implies them; say whether it did."""
    node = graph.producer.get(name)
    bounds = clip_bounds(graph, node)
    if node is None or bounds is None or name in graph.output_names:
        return False
    if graph.only_consumer(node.input[0]) is None:
        return False
    low, high = bounds
    # One float32 step of slack: a scale is rounded, the bound it came from is not.
    keeps_low = low <= params.low * (1 - 1e-6)
    keeps_high = high >= params.high * (1 - 1e-6)
    if keeps_low and keeps_high:
        before = graph.producer.get(node.input[0])
        if before is None:
            return False
        graph.replace(node)
        before.output[:] = [name if out == node.input[0] else out for out in before.output]
        graph.reindex()
    elif keeps_high and low == 0.0 and node.op_type == "Clip":
        graph.replace(node, helper.make_node("Relu", [node.input[0]], [name], name=node.name))
    else:
        return False
    return True


def _insert_pair(graph: Graph, name: str, params: QuantParams, *, clips: bool = False) -> None:
    # A constant of the network may be called so already.
    scale, zero_point = (graph.fresh_name(f"{name}.{part}") for part in ("scale", "zero_point"))
    graph.constants[scale] = np.asarray(params.scale, np.float32)
    graph.constants[zero_point] = np.asarray(params.zero_point, params.dtype)
    users = list(graph.consumers.get(name, []))
    quantized, result = f"{name}.quantized", f"{name}.dequantized"
    quantize = helper.make_node("QuantizeLinear", [name, scale, zero_point], [quantized])
    if clips:
        mark_clip(quantize)
    graph.add([quantize, helper.make_node("DequantizeLinear", [quantized, scale, zero_point], [result])])
    graph.reroute(name, result, users)
    if name in graph.output_names:
        raise ModelError(f"The plan quantizes the graph's output {name!r}; outputs stay float.")
