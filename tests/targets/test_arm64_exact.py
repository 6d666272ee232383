"""On exact grids ARM64's runtimes give the integers of x86, and why they would not by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from quant_networks import pictures, residual_network

from edgeattn.artifact import OnnxArtifact
from edgeattn.errors import RecipeError
from edgeattn.export.artifacts import save_artifact
from edgeattn.export.qdq import emit_qdq
from edgeattn.lower import lower_artifact
from edgeattn.lower.passes import PASSES
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.ptq import make_plan
from edgeattn.targets import get_target
from edgeattn.targets.arm64 import Arm64
from edgeattn.targets.arm64_setup import find_environment, why_not_set_up
from edgeattn.targets.reference import make_program

EXACT = PtqConfig(nncf=False, importance=False, tuning_steps=0, headroom="proven", exact=True)
HALF = ("even", "away")


def needs_emulation() -> None:
    reason, install = why_not_set_up()
    if reason:
        pytest.skip(f"{reason}. {install}")


def on_arm(
    artifact: OnnxArtifact, images: list[dict[str, NDArray[np.float32]]], folder: Path, **options: Any
) -> list[dict[str, NDArray[np.float32]]]:
    """Lower and run under emulation, in one process: each takes seconds to start."""
    target = Arm64(**options)
    lowered = target.lower(artifact, folder)
    with target._worker(find_environment(), lowered.path, 1) as worker:
        return [worker.infer(feeds, artifact.outputs) for feeds in images]


def every_sum(scales: tuple[float, float, float], zeros: tuple[int, int, int]) -> ModelProto:
    """The sums of every two bytes, as an Add and as a Sum."""
    constants, nodes = {}, []
    for name, scale, zero in zip(("a", "b", "c"), scales, zeros, strict=True):
        constants[f"{name}.scale"], constants[f"{name}.zero"] = np.float32(scale), np.uint8(zero)

    def pair(source: str, name: str, result: str) -> None:
        parameters = [f"{name}.scale", f"{name}.zero"]
        nodes.append(helper.make_node("QuantizeLinear", [source, *parameters], [f"{result}.quantized"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{result}.quantized", *parameters], [result]))

    pair("a", "a", "a.real")
    pair("b", "b", "b.real")
    for kind, result in (("Add", "away"), ("Sum", "even")):
        nodes.append(helper.make_node(kind, ["a.real", "b.real"], [f"{result}.sum"]))
        pair(f"{result}.sum", "c", result)
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1, 256, 256)) for name in "ab"}
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1, 256, 256)) for name in HALF]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "sums", list(values.values()), results, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


@pytest.mark.slow
def test_arms_integer_add_rounds_halves_away_from_zero_and_a_sum_rounds_to_even(tmp_path: Path) -> None:
    """Should this fail, ONNX Runtime's ARM kernel rounds as others do, and the pass float-sums can go."""
    needs_emulation()
    scales, zeros = (0.5, 0.25, 0.5), (128, 120, 126)
    model = every_sum(scales, zeros)
    first, second = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    feeds = {
        name: ((value - zero) * scale).astype(np.float32)[None, None]
        for name, value, zero, scale in zip(("a", "b"), (first, second), zeros, scales, strict=False)
    }
    target = get_target("arm64")
    # As it is: lowering would spell both alike.
    engine = target.build(save_artifact(model, tmp_path / "sums.onnx", "u8"), tmp_path / "engine")
    with target.open(engine) as session:
        got = session.infer(feeds)
    wanted = {name: make_program(model, rounding=f"half-{name}").run(feeds)[name] for name in HALF}
    assert np.mean(wanted["even"] != wanted["away"]) > 0.2
    for name in HALF:
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)


def exact_network(seed: int, folder: Path) -> tuple[OnnxArtifact, ModelProto]:
    model = residual_network(seed)
    spelled = emit_qdq(model, make_plan(model, pictures(16, seed), EXACT), "u8")
    return save_artifact(spelled, folder / "exact.onnx", "u8"), spelled


def largest_differences(seed: int, folder: Path, count: int = 16, **options: Any) -> NDArray[np.float32]:
    """Return, by image, how far ARM64's logits are from those of exact integer arithmetic."""
    needs_emulation()
    artifact, spelled = exact_network(seed, folder)
    images = [{"input": image} for image in pictures(count, seed + 1)]
    program = make_program(spelled)
    wanted = np.concatenate([program.run(feeds)["logits"] for feeds in images])
    assert len(np.unique(wanted)) > 10
    got = np.concatenate([outputs["logits"] for outputs in on_arm(artifact, images, folder, **options)])
    return np.abs(got - wanted).max(axis=1)


def test_onnx_runtime_on_arm_gives_the_integers_of_exact_arithmetic(tmp_path: Path) -> None:
    assert largest_differences(0, tmp_path).max() < 1e-5


@pytest.mark.parametrize(("machine", "kind"), [("x86_64", "Add"), ("aarch64", "Sum"), ("arm64", "Sum")])
def test_sums_are_added_in_float_where_the_integer_kernel_rounds_otherwise(
    machine: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    artifact, _ = exact_network(0, tmp_path)
    lowered = get_target("ort-cpu").lower(artifact, tmp_path / "lowered")
    kinds = {node.op_type for node in onnx.load(str(lowered.path)).graph.node} & {"Add", "Sum"}
    assert kinds == {kind}


def test_the_integer_sums_of_x86_and_those_in_float_are_the_same(tmp_path: Path) -> None:
    """What is carried to a device computes what was measured here."""
    artifact, _ = exact_network(0, tmp_path)
    target = get_target("ort-cpu")
    logits = []
    for name in ("ort-cpu", "ort-portable"):
        lowered = lower_artifact(artifact, target=name, workdir=tmp_path / name)
        with target.open(target.build(lowered, tmp_path / "engines" / name)) as session:
            logits.append([session.infer({"input": image})["logits"] for image in pictures(16, 1)])
    np.testing.assert_array_equal(*logits)


def test_low_precision_is_openvinos() -> None:
    with pytest.raises(RecipeError, match="low_precision is OpenVINO's"):
        get_target("arm64", low_precision=True)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["ort", "openvino"])
@pytest.mark.parametrize("cpu", ["cortex-a72", "neoverse-n1", "max"])
@pytest.mark.parametrize("seed", [1, 2, 24])
def test_every_runtime_and_processor_gives_them(seed: int, cpu: str, runtime: str, tmp_path: Path) -> None:
    """One image in sixteen may part: a sum larger than any in calibration may not fit float32's 24 bits."""
    off = largest_differences(seed, tmp_path, cpu=cpu, runtime=runtime)
    assert np.count_nonzero(off > 1e-5) <= 1, off


@pytest.mark.slow
def test_onnx_runtime_needs_the_pass_that_makes_it_add_in_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        PASSES, "ort-portable", tuple(item for item in PASSES["ort-portable"] if item.name != "float-sums")
    )
    assert np.count_nonzero(largest_differences(0, tmp_path) > 1e-5) > 8


@pytest.mark.slow
def test_openvino_needs_its_low_precision_transformations_to_be_off(tmp_path: Path) -> None:
    """Should this fail, OpenVINO has integer kernels for such layers on ARM, or rounds no weight to float16."""
    options = {"runtime": "openvino", "low_precision": True}
    assert np.count_nonzero(largest_differences(0, tmp_path, **options) > 1e-5) > 8
