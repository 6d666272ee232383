"""What TensorRT for RTX makes of our graphs, read from its own list of kernels; builds need no GPU."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import onnx
import pytest
from attention_kinds import RECIPE_KINDS
from attention_networks import quantized
from rich.console import Console

from edgeattn.artifact import OnnxArtifact, sha256_of_file
from edgeattn.cli_coverage import print_coverage
from edgeattn.errors import ModelError
from edgeattn.export.artifacts import save_artifact
from edgeattn.lower import preferred_forms
from edgeattn.onnx_graph import Graph
from edgeattn.targets._trt_coverage import describe_coverage
from edgeattn.targets._trt_log import LoggedLayer
from edgeattn.targets.tensorrt_rtx import TensorRtRtx


@pytest.fixture(scope="module")
def rtx() -> TensorRtRtx:
    target = TensorRtRtx(compute_capability="SM86")
    if not target.probe().can_build:
        pytest.skip(target.probe().reason)
    return target


def build(rtx: TensorRtRtx, model: onnx.ModelProto, folder: Path) -> dict[str, Any]:
    artifact = save_artifact(model, folder / "net.onnx", "s8", {})
    return dict(rtx.build(rtx.lower(artifact, folder), folder).details)


@pytest.mark.parametrize("kind", ["none", "eca", "coord"])
def test_all_layers_with_weights_run_in_int8_and_nothing_in_float32(
    kind: str, rtx: TensorRtRtx, tmp_path: Path
) -> None:
    details = build(rtx, quantized(kind), tmp_path)
    coverage = details["coverage"]
    assert (coverage["int8_coverage"], coverage["convolutions"], coverage["not_int8"]) == (1.0, 4, [])
    assert coverage["float32_kernel_names"] == []
    assert not [text for text in details["warnings"] if "UINT8" in text]
    assert coverage["gates"] == (kind != "none")
    assert sum(item["kernels"] for item in coverage["modules"]) == details["kernels"]
    assert sum(item["bytes_moved"] for item in coverage["modules"]) == coverage["bytes_moved"] > 0
    if kind != "none":
        assert coverage["kernels_per_gate"] <= {"eca": 4, "coord": 5}[kind]
        assert coverage["reformats_per_gate"] <= 1


def test_what_lowering_is_for_shows_where_it_is_left_out(rtx: TensorRtRtx, tmp_path: Path) -> None:
    """The fault planted: the graph as it was exported has gates in float32 and more kernels."""
    artifact = save_artifact(quantized("eca", policy="float"), tmp_path / "raw.onnx", "s8", {})
    raw = rtx.build(artifact, tmp_path).details["coverage"]
    assert raw["float32_kernels"] > 0
    assert raw["float32_kernel_names"]


def test_layers_that_are_not_int8_are_named(rtx: TensorRtRtx, tmp_path: Path) -> None:
    model = quantized("none")
    graph = Graph(model)
    conv = next(node for node in graph.nodes if node.op_type == "Conv")
    weight = graph.producer[conv.input[1]]
    integers, scale = (graph.constants[name] for name in weight.input[:2])
    graph.constants["float_weight"] = (integers * scale.reshape(-1, 1, 1, 1)).astype("float32")
    conv.input[1] = "float_weight"
    graph.reindex()
    graph.remove_unused()
    artifact = save_artifact(graph.to_model(), tmp_path / "holed.onnx", "s8", {})
    coverage = rtx.build(artifact, tmp_path).details["coverage"]
    assert coverage["int8_coverage"] == 0.75
    assert coverage["not_int8"] == [conv.name]


def gate_graph(tmp_path: Path) -> tuple[OnnxArtifact, list[str]]:
    model = quantized("eca")
    path = tmp_path / "net.onnx"
    onnx.save(model, str(path))
    inputs, outputs = Graph(model).io_specs()
    artifact = OnnxArtifact(path, sha256_of_file(path), 17, inputs, outputs, "s8")
    return artifact, [node.name for node in Graph(model).nodes if "/4/" in node.name or ".4" in node.name]


def test_a_gate_costs_the_kernels_that_it_adds(tmp_path: Path) -> None:
    """The kernel in front, which would be there without the gate, does not count; one without nodes does."""
    artifact, names = gate_graph(tmp_path)
    pool = next(name for name in names if "mean" in name or "pool" in name)
    conv = next(name for name in names if "conv2d" in name and "quantized" not in name)
    product = next(name for name in names if "mul" in name and "quantized" not in name)

    def layer(name: str, *nodes: str, kind: str = "kgen") -> LoggedLayer:
        return LoggedLayer(name, kind, ("float16",), ("float16",), nodes, 10)

    front = layer("front", "features/3/hardtanh/0", pool)
    rest = [layer("__myl_Move_1"), layer("conv", conv, kind="correlation"), layer("product", product)]
    found = describe_coverage(artifact.path, [front, *rest])
    assert (found["kernels_per_gate"], found["reformats_per_gate"]) == (3, 1)
    own = layer("own", pool)
    assert describe_coverage(artifact.path, [own, *rest])["kernels_per_gate"] == 4
    assert describe_coverage(artifact.path, []) == {}


def test_the_table_says_what_was_built(rtx: TensorRtRtx, tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=120)
    print_coverage(console, "tensorrt-rtx", build(rtx, quantized("eca"), tmp_path))
    text = stream.getvalue()
    assert "SM86" in text
    assert "INT8: 100.0 % of 4 layers" in text
    assert "gates: 1, each adds 2.0 kernels" in text
    assert "features.3" in text or "features" in text
    print_coverage(console, "ort-cpu", {"runtime": "ort"})
    assert stream.getvalue() == text


def for_capability(capability: str) -> TensorRtRtx:
    target = TensorRtRtx(compute_capability=capability)
    if not target.probe().can_build:
        pytest.skip(target.probe().reason)
    return target


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    """One file for every GPU: with Coordinate Attention, and a matrix product at the end."""
    folder = tmp_path_factory.mktemp("lowered")
    artifact = save_artifact(quantized("coord"), folder / "net.onnx", "s8", {})
    return TensorRtRtx(compute_capability="SM86").lower(artifact, folder)


@pytest.mark.parametrize("capability", ["SM80", "SM86", "SM89", "SM120", "SM121"])
def test_every_gpu_from_ampere_on_gets_the_same_coverage(
    capability: str, lowered: OnnxArtifact, tmp_path: Path
) -> None:
    details = for_capability(capability).build(lowered, tmp_path).details
    coverage = details["coverage"]
    assert (coverage["int8_coverage"], coverage["float32_kernels"]) == (1.0, 0)
    assert coverage["kernels_per_gate"] <= 5


def test_the_same_file_builds_for_turing_and_its_coverage_says_what_is_not_int8(
    lowered: OnnxArtifact, tmp_path: Path
) -> None:
    """TensorRT for RTX 1.7.1 has no INT8 convolution there."""
    coverage = for_capability("SM75").build(lowered, tmp_path).details["coverage"]
    assert coverage["int8_coverage"] == 0.25
    assert len(coverage["not_int8"]) == 3
    assert coverage["float32_kernels"] > 0


def test_lowering_for_turing_leaves_nothing_in_float32(tmp_path: Path) -> None:
    coverage = build(for_capability("SM75"), quantized("coord"), tmp_path)["coverage"]
    assert (coverage["int8_coverage"], coverage["float32_kernels"]) == (0.25, 0)


def test_what_turing_refuses_is_explained_and_harms_no_later_build(
    rtx: TensorRtRtx, lowered: OnnxArtifact, tmp_path: Path
) -> None:
    """The faults planted: a float32 matrix product; and a process whose build failed."""
    raw = save_artifact(quantized("coord"), tmp_path / "raw.onnx", "s8", {})
    with pytest.raises(ModelError, match="FP32 GEMM is not supported") as caught:
        for_capability("SM75").build(raw, tmp_path)
    assert "Lower the model for tensorrt-rtx" in str(caught.value)
    assert rtx.build(lowered, tmp_path).details["coverage"]["int8_coverage"] == 1.0


def test_forms_that_cpu_targets_share_with_tensorrt_stay_in_int8(rtx: TensorRtRtx, tmp_path: Path) -> None:
    from network_builds import whole_network

    form = preferred_forms("ort-cpu", "openvino-cpu", "tensorrt-rtx")["coord"]
    coverage = build(rtx, whole_network("mobilenet_v2", "coord", form, 64).model, tmp_path)["coverage"]
    assert coverage["int8_coverage"] == 1.0, coverage["not_int8"]


_GATES = {"eca": 4, "coord": 5}


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "blocks"), [("mobilenet_v2", 17), ("efficientnet_lite0", 16)])
def test_whole_networks_meet_the_bounds(arch: str, blocks: int, rtx: TensorRtRtx, tmp_path: Path) -> None:
    """Kernels are counted against the bare network, not by what a kernel says that it computes."""
    from network_builds import whole_network

    kernels: dict[str, int] = {}
    reformats: dict[str, int] = {}
    for kind in ("none", *RECIPE_KINDS):
        built = whole_network(arch, kind, preferred_forms("tensorrt-rtx").get(kind))
        details = build(rtx, built.model, tmp_path)
        coverage = details["coverage"]
        kernels[kind], reformats[kind] = details["kernels"], details["reformats"]
        assert coverage["int8_coverage"] == 1.0, (kind, coverage["not_int8"])
        assert coverage["float32_kernels"] == 0, (kind, coverage["float32_kernel_names"])
        assert not [text for text in details["warnings"] if "UINT8" in text]
        if kind != "none":
            # One in every block, or in every block that expands: all but the first.
            assert built.gates in (blocks, blocks - 1)
            assert (reformats[kind] - reformats["none"]) / built.gates <= 1, kind
        if kind in _GATES:
            assert (kernels[kind] - kernels["none"]) / built.gates <= _GATES[kind]
