"""Small ONNX models in each profile, and one built engine for each target that can build here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from target_shapes import SHAPE

from edgeattn.artifact import IoSpec, OnnxArtifact, sha256_of_file
from edgeattn.targets import Engine, get_target

CHANNELS = 16
ZERO_POINTS: dict[str, tuple[type[np.generic], int]] = {"u8": (np.uint8, 128), "s8": (np.int8, 0)}


class _Graph:
    """conv -> relu -> conv -> global average pool, quantized as the profile says."""

    def __init__(self, profile: str) -> None:
        self.profile = profile
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.rng = np.random.default_rng(0)

    def constant(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def qdq(self, x: str, name: str, scale: float, *, positive: bool = False) -> str:
        if self.profile == "fp32":
            return x
        dtype, zero_point = ZERO_POINTS[self.profile]
        if positive and self.profile == "u8":
            scale, zero_point = scale / 2, 0
        s = self.constant(f"{name}_scale", np.float32(scale))
        z = self.constant(f"{name}_zero_point", np.array(zero_point, dtype))
        self.nodes += [
            helper.make_node("QuantizeLinear", [x, s, z], [f"{name}_q"], name=f"{name}_Q"),
            helper.make_node("DequantizeLinear", [f"{name}_q", s, z], [f"{name}_dq"], name=f"{name}_DQ"),
        ]
        return f"{name}_dq"

    def conv(self, x: str, name: str, channels: int) -> str:
        weight = self.rng.normal(size=(CHANNELS, channels, 3, 3)) / np.sqrt(channels * 9)
        bias = self.constant(f"{name}_b", (self.rng.normal(size=CHANNELS) * 0.1).astype(np.float32))
        if self.profile == "fp32":
            w = self.constant(f"{name}_w", weight.astype(np.float32))
        else:
            # Up to 64: sums of two products fit 16 bits, so x86 without VNNI computes what others do.
            scale = (np.abs(weight).max(axis=(1, 2, 3)) / 64).astype(np.float32)
            q = np.clip(np.round(weight / scale[:, None, None, None]), -127, 127).astype(np.int8)
            inputs = [
                self.constant(f"{name}_wq", q),
                self.constant(f"{name}_ws", scale),
                self.constant(f"{name}_wz", np.zeros(CHANNELS, np.int8)),
            ]
            w = f"{name}_w"
            self.nodes.append(helper.make_node("DequantizeLinear", inputs, [w], axis=0, name=f"{name}_wDQ"))
        self.nodes.append(helper.make_node("Conv", [x, w, bias], [f"{name}_y"], name=name, pads=[1, 1, 1, 1]))
        return f"{name}_y"


def write_model(path: Path, profile: str) -> OnnxArtifact:
    graph = _Graph(profile)
    y = graph.conv(graph.qdq("input", "x", 0.03), "conv1", SHAPE[1])
    graph.nodes.append(helper.make_node("Relu", [y], ["r"], name="relu"))
    y = graph.conv(graph.qdq("r", "a1", 0.04, positive=True), "conv2", CHANNELS)
    y = graph.qdq(y, "a2", 0.05)
    graph.nodes.append(helper.make_node("GlobalAveragePool", [y], ["pooled"], name="pool"))
    graph.nodes.append(helper.make_node("Flatten", ["pooled"], ["logits"], name="flatten"))
    body = helper.make_graph(
        graph.nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, CHANNELS))],
        graph.initializers,
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return describe(path, profile)


def describe(path: Path, profile: str) -> OnnxArtifact:
    return OnnxArtifact(
        path=path,
        sha256=sha256_of_file(path),
        opset=17,
        inputs=(IoSpec("input", SHAPE),),
        outputs=(IoSpec("logits", (1, CHANNELS)),),
        profile=profile,
    )


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxArtifact]:
    folder = tmp_path_factory.mktemp("models")
    return {profile: write_model(folder / f"{profile}.onnx", profile) for profile in ("fp32", "u8", "s8")}


@pytest.fixture
def images() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)


@pytest.fixture(scope="session")
def build(
    artifacts: dict[str, OnnxArtifact], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Engine]:
    """Build once for each target and precision; tests that change the file build their own."""
    built: dict[tuple[str, str], Engine] = {}

    def build_engine(name: str, precision: str = "int8") -> Engine:
        target = get_target(name)
        availability = target.probe()
        if not availability.can_build:
            pytest.skip(f"{name} cannot build here: {availability.reason}")
        if (name, precision) not in built:
            artifact = artifacts["fp32" if precision == "fp32" else target.profile]
            built[name, precision] = target.build(artifact, tmp_path_factory.mktemp("engines"))
        return built[name, precision]

    return build_engine
