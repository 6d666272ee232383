"""Small canonical graphs with random weights, for tests of quantization."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

SIZE = 8


class Builder:
    """Writes nodes one after another, each named after what it makes."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = np.asarray(value, np.float32)
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def conv(
        self,
        source: str,
        name: str,
        ins: int,
        outs: int,
        *,
        kernel: int = 1,
        group: int = 1,
        pad: int | None = None,
    ) -> str:
        spread = (ins // group * kernel * kernel) ** -0.5
        # Channels of very different size, as folded batch norms leave them.
        sizes = self.random.uniform(0.2, 2.0, (outs, 1, 1, 1))
        weight = self.random.normal(size=(outs, ins // group, kernel, kernel)) * spread * sizes
        self.constant(f"{name}.weight", weight)
        self.constant(f"{name}.bias", self.random.normal(size=outs) * 0.2 + 0.1)
        pad = kernel // 2 if pad is None else pad
        return self.node(
            "Conv",
            [source, f"{name}.weight", f"{name}.bias"],
            name,
            kernel_shape=[kernel, kernel],
            pads=[pad] * 4,
            group=group,
        )

    def relu6(self, source: str, name: str) -> str:
        self.constant("zero", 0.0)
        self.constant("six", 6.0)
        return self.node("Clip", [source, "zero", "six"], name)

    def model(
        self, output: str, shape: tuple[int, ...], channels: int = 3, *, channels_last: bool = False
    ) -> ModelProto:
        image = (1, SIZE, SIZE, channels) if channels_last else (1, channels, SIZE, SIZE)
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, image)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            initializer=[numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.checker.check_model(model, full_check=True)
        return model


def inverted_residual(seed: int = 0, width: int = 8, hidden: int = 16) -> ModelProto:
    """Return a stem, a block with a residual add and a classifier, as in MobileNetV2."""
    b = Builder(seed)
    x = b.conv("input", "stem", 3, width, kernel=3)
    x = b.relu6(x, "stem_act")
    y = b.relu6(b.conv(x, "expand", width, hidden), "expand_act")
    y = b.relu6(b.conv(y, "depthwise", hidden, hidden, kernel=3, group=hidden), "depthwise_act")
    x = b.node("Add", [x, b.conv(y, "project", hidden, width)], "sum")
    x = b.relu6(b.conv(x, "last", width, hidden), "last_act")
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x], "pool")], "flat")
    b.constant("head.weight", b.random.normal(size=(10, hidden)))
    b.constant("head.bias", b.random.normal(size=10))
    return b.model(b.node("Gemm", [x, "head.weight", "head.bias"], "logits", transB=1), (1, 10))


def residual_network(seed: int, blocks: int = 3) -> ModelProto:
    """A stem, inverted residuals that share a stream, a pool and a classifier, as MobileNetV2 has them."""
    b = Builder(seed)
    stream = b.relu6(b.conv("input", "stem", 3, 8, kernel=3), "stem.act")
    stream = b.conv(stream, "first", 8, 8)
    for block in range(blocks):
        name = f"block{block}"
        hidden = b.relu6(b.conv(stream, f"{name}.expand", 8, 24), f"{name}.expand.act")
        hidden = b.relu6(b.conv(hidden, f"{name}.depth", 24, 24, kernel=3, group=24), f"{name}.depth.act")
        stream = b.node("Add", [stream, b.conv(hidden, f"{name}.project", 24, 8)], f"{name}.sum")
    head = b.relu6(b.conv(stream, "head", 8, 32), "head.act")
    pooled = b.node("Flatten", [b.node("GlobalAveragePool", [head], "pool")], "flat", axis=1)
    b.constant("classifier.weight", b.random.normal(size=(10, 32)))
    b.constant("classifier.bias", b.random.normal(size=10))
    logits = b.node("Gemm", [pooled, "classifier.weight", "classifier.bias"], "logits", transB=1)
    return b.model(logits, (1, 10))


def swish_block(
    seed: int = 0, *, spread: float = 100.0, hidden: int = 24, is_hard: bool = True
) -> ModelProto:
    """Return an inverted residual with hard swishes, as in MobileNetV3, or swishes, as in EfficientNet.

    The first of them reads channels whose sizes differ by a factor of `spread`, and the depthwise convolution behind
    brings them to like sizes again.
    """
    b = Builder(seed)

    def swish(source: str, name: str) -> str:
        if is_hard:
            return b.node("HardSwish", [source], name)
        return b.node("Mul", [source, b.node("Sigmoid", [source], f"{name}.sigmoid")], name)

    x = b.conv("input", "expand", 3, hidden, kernel=3)
    sizes = np.geomspace(1 / spread, 1.0, hidden).astype(np.float32)
    for name in ("expand.weight", "expand.bias"):
        b.constants[name] *= 8 * sizes.reshape(-1, *[1] * (b.constants[name].ndim - 1))
    y = b.conv(swish(x, "swish"), "depthwise", hidden, hidden, kernel=3, group=hidden)
    b.constants["depthwise.weight"] /= sizes.reshape(-1, 1, 1, 1)
    y = b.conv(swish(y, "swish2"), "project", hidden, 8)
    b.constant("head.weight", b.random.normal(size=(10, 8)))
    b.constant("head.bias", b.random.normal(size=10))
    flat = b.node("Flatten", [b.node("GlobalAveragePool", [y], "pool")], "flat")
    return b.model(b.node("Gemm", [flat, "head.weight", "head.bias"], "logits", transB=1), (1, 10))


def pictures(count: int, seed: int = 1) -> list[NDArray[np.float32]]:
    """Return `count` images (1, 3, SIZE, SIZE)."""
    random = np.random.default_rng(seed)
    return [random.normal(size=(1, 3, SIZE, SIZE)).astype(np.float32) for _ in range(count)]


def run(model: ModelProto, image: NDArray[np.float32], *outputs: str) -> list[NDArray[Any]]:
    """Run a model as it is written, without optimization."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: list[NDArray[Any]] = session.run(list(outputs) or None, {"input": image})
    return result
