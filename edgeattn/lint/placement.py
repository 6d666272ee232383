"""Rules about where Q/DQ pairs are, and where they are missing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from edgeattn.export.canonical import widen_pads, zero_pads
from edgeattn.lint.base import Evidence, Rule, View, name_of
from edgeattn.lower.extents import bound_extents
from edgeattn.lower.half_products import HalfProducts, float32_products
from edgeattn.lower.half_remainder import HalfRemainder, float32_nodes, is_int8, remainder
from edgeattn.lower.patterns import dequantize_of, quantize_behind
from edgeattn.onnx_graph import Graph, attribute, clip_bounds

__all__ = ["FLOAT32_PRODUCTS", "FLOAT32_REMAINDER", "RULES"]

_INT8 = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _double_addends(view: View) -> Iterator[Evidence]:
    for node in view.nodes("Add"):
        if any(name in view.graph.constants for name in node.input):
            continue
        pairs = [dequantize_of(view.graph, name) for name in node.input]
        if not all(pairs):
            continue
        for name in node.input:
            writer = view.writer(name)
            # Something else reads it, too: then it is stored in any case.
            if writer is not None and writer.op_type == "Conv" and len(view.readers(writer.output[0])) == 1:
                other = next((item for item in node.input if item != name), name)
                yield Evidence(name_of(node), name, f"Q/DQ on the convolution's branch and on {other}")
                break


def _pads_before(view: View) -> Iterator[Evidence]:
    for node in view.nodes("Conv"):
        pad = _pad_behind_pair(view.graph, node)
        if pad is not None:
            yield Evidence(name_of(pad), pad.output[0], "Q/DQ between Pad and Conv")


def _pad_behind_pair(graph: Graph, conv: NodeProto) -> NodeProto | None:
    pair = dequantize_of(graph, conv.input[0])
    quantize = graph.producer.get(pair.input[0]) if pair is not None else None
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    pad = graph.producer.get(quantize.input[0])
    return pad if pad is not None and pad.op_type == "Pad" else None


def _merge_pads(graph: Graph) -> bool:
    """Move zero pads into the convolution behind them: zero quantizes to zero."""
    changed = False
    for conv in [node for node in graph.nodes if node.op_type == "Conv"]:
        pad = _pad_behind_pair(graph, conv)
        sides = zero_pads(graph, pad) if pad is not None else None
        if pad is None or sides is None or graph.only_consumer(pad.output[0]) is None:
            continue
        quantize = graph.consumers[pad.output[0]][0]
        pairs = graph.consumers.get(quantize.output[0], [])
        users = [user for item in pairs for user in graph.consumers.get(item.output[0], [])]
        if len(users) != 1 or attribute(conv, "auto_pad", "NOTSET") not in ("NOTSET", ""):
            continue
        widen_pads(conv, sides)
        quantize.input[0] = pad.input[0]
        graph.nodes.remove(pad)
        graph.reindex()
        changed = True
    return changed


def _clips_before(view: View) -> Iterator[Evidence]:
    for node in view.nodes("Clip", "Relu"):
        if _implied_clip(view.graph, node):
            yield Evidence(name_of(node), node.output[0], f"{node.op_type} between Conv and QuantizeLinear")


def _implied_clip(graph: Graph, node: NodeProto) -> bool:
    """Return whether a clip between a layer with weights and its QuantizeLinear changes nothing."""
    before, quantize = graph.producer.get(node.input[0]), quantize_behind(graph, node.output[0])
    if before is None or before.op_type not in ("Conv", "Gemm") or quantize is None:
        return False
    scale = graph.scalar(quantize.input[1])
    zero = graph.constant(quantize.input[2]) if len(quantize.input) > 2 else np.zeros((), np.uint8)
    if scale is None or zero is None or graph.only_consumer(node.input[0]) is None:
        return False
    limits, offset = np.iinfo(zero.dtype), int(zero.reshape(-1)[0])
    bounds = clip_bounds(graph, node)
    if bounds is None:
        return False
    low, high = bounds
    return low <= (limits.min - offset) * scale and high >= (limits.max - offset) * scale * (1 - 1e-6)


def _drop_clips(graph: Graph) -> bool:
    changed = False
    for node in [item for item in graph.nodes if item.op_type in ("Clip", "Relu")]:
        if _implied_clip(graph, node):
            graph.replace_input(node.output[0], node.input[0])
            graph.nodes.remove(node)
            graph.reindex()
            changed = True
    return changed


def _unquantized_results(view: View) -> Iterator[Evidence]:
    """An INT8 layer whose activation is followed by no QuantizeLinear writes float."""
    graph = view.graph
    for node in view.nodes("Conv"):
        if not is_int8(graph, node):
            continue
        activation = graph.only_consumer(node.output[0])
        if activation is None or activation.op_type not in ("Relu", "Clip"):
            continue
        users = graph.consumers.get(activation.output[0], [])
        layers = [user for user in users if user.op_type in (*_INT8, "MaxPool", "AveragePool")]
        if layers and len(layers) == len(users):
            yield Evidence(name_of(activation), activation.output[0], f"{name_of(layers[0])} reads float")


def _float_remainder(view: View) -> Iterator[Evidence]:
    if not view.is_quantized:
        return
    allowed = set(float32_nodes(view.graph))
    chosen, kept = remainder(view.graph)
    for node in chosen:
        yield Evidence(name_of(node), node.output[0], f"{node.op_type} in float32")
    for node in kept:
        if name_of(node) not in allowed:
            extent = bound_extents(view.graph).get(node.output[0])
            shown = "nothing is known about its values" if extent is None else f"values up to {extent:.3g}"
            yield Evidence(name_of(node), node.output[0], f"{node.op_type} in float32: {shown}")


def _half(graph: Graph) -> bool:
    return HalfRemainder()(graph)


def _float_products(view: View) -> Iterator[Evidence]:
    for node in float32_products(view.graph):
        yield Evidence(name_of(node), node.output[0], f"{node.op_type} in INT8, float32 in name")


def _half_products(graph: Graph) -> bool:
    return HalfProducts()(graph)


RULES = (
    Rule(
        "QDQ001",
        "Q/DQ on both inputs of an Add",
        "TensorRT fuses a residual add into a convolution whose branch is not quantized; with Q/DQ on both "
        "branches the add is a kernel of its own.",
        frozenset({"tensorrt", "dla"}),
        "warning",
        _double_addends,
    ),
    Rule(
        "QDQ002",
        "Q/DQ between Pad and Conv",
        "The pad stays a kernel of its own instead of becoming part of the convolution.",
        frozenset({"tensorrt", "dla", "openvino", "ort"}),
        "warning",
        _pads_before,
        _merge_pads,
    ),
    Rule(
        "QDQ003",
        "a clip that the quantized range implies",
        "Between a convolution and its QuantizeLinear it keeps ONNX Runtime from fusing them: MobileNetV2 took "
        "five times as long.",
        frozenset({"tensorrt", "dla", "openvino", "ort"}),
        "warning",
        _clips_before,
        _drop_clips,
    ),
    Rule(
        "QDQ004",
        "no QuantizeLinear behind a fused activation",
        "The INT8 convolution writes float, and the next layer quantizes or computes in float.",
        frozenset({"tensorrt", "dla", "openvino", "ort"}),
        "warning",
        _unquantized_results,
    ),
)

FLOAT32_REMAINDER = Rule(
    "TRT003",
    "a remainder in float32",
    "A strongly typed network computes in float32 whatever is neither quantized nor cast to float16.",
    frozenset({"tensorrt"}),
    "warning",
    _float_remainder,
    _half,
    "to float16",
)

FLOAT32_PRODUCTS = Rule(
    "TRT005",
    "an INT8 matrix product that is float32 in name",
    "TensorRT for RTX 1.7.1 does not build it for Turing (SM75); with casts to float16 round it, one file builds for "
    "SM75 to SM121, and its kernels are the same.",
    frozenset({"tensorrt"}),
    "warning",
    _float_products,
    _half_products,
    "to float16",
)
