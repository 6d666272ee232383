"""Old ONNX Runtimes cut what they interpolate in integers, or end: there a resize stays float, and no number changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_graphs import Array, Builder, lower, onnx_runtime_before, operators_after_optimization, run

from edgeattn.artifact import OnnxArtifact
from edgeattn.export.artifacts import save_artifact
from edgeattn.lower.part_resizes import PartResizes
from edgeattn.lower.passes import passes_for
from edgeattn.targets import get_target

STEP = 0.02


def resize_model(
    mode: str = "linear",
    place: str = "half_pixel",
    factor: float = 2.0,
    dtype: type[np.integer[Any]] = np.uint8,
    zero_point: int = 100,
) -> onnx.ModelProto:
    b = Builder()
    factors = b.constant(np.array([1, 1, factor, factor], np.float32))
    attributes = {"mode": mode, "coordinate_transformation_mode": place}
    larger = b.add("Resize", b.pair("x", STEP, zero_point, dtype), "", factors, **attributes)
    return b.model({"x": (1, 3, 7, 6)}, b.pair(larger, STEP, zero_point, dtype))


def pictures(seed: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).uniform(-1.5, 2.5, (1, 3, 7, 6)).astype(np.float32)}


@given(
    seed=st.integers(0, 10_000),
    mode=st.sampled_from(["linear", "cubic"]),
    place=st.sampled_from(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]),
    factor=st.sampled_from([0.5, 1.5, 2.0, 3.0]),
    signed=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_every_onnx_runtime_computes_what_the_graph_says(
    seed: int, mode: str, place: str, factor: float, signed: bool
) -> None:
    kind: dict[str, Any] = {"dtype": np.int8, "zero_point": -20} if signed else {}
    model, feeds = resize_model(mode, place, factor, **kind), pictures(seed)
    lowered, changed = lower(model, PartResizes())
    assert changed == ["part-resizes"]
    expected = run(model, feeds)
    np.testing.assert_array_equal(run(lowered, feeds), expected)
    np.testing.assert_array_equal(run(lowered, feeds, optimized=True), expected)
    assert lower(lowered, PartResizes())[1] == []


def test_without_the_pass_onnx_runtime_before_1_27_cuts() -> None:
    # Once none before it is supported, nothing needs the pass.
    model, feeds = resize_model(), pictures(0)
    off = (run(model, feeds, optimized=True) - run(model, feeds)) / STEP
    if onnx_runtime_before(1, 27):
        assert off.mean() < -0.3
    else:
        assert np.abs(off).max() < 0.01


def test_the_nearest_value_stays_an_integer(tmp_path: Path) -> None:
    model = resize_model("nearest", "asymmetric")
    assert lower(model, PartResizes())[1] == []
    assert "DequantizeLinear" not in operators_after_optimization(model, tmp_path)[:2]


def test_a_resize_of_floats_is_nobodys_business() -> None:
    b = Builder()
    factors = b.constant(np.array([1, 1, 2, 2], np.float32))
    model = b.model({"x": (1, 3, 4, 4)}, b.pair(b.add("Resize", "x", "", factors, mode="linear"), STEP, 100))
    assert lower(model, PartResizes())[1] == []


def test_files_that_travel_have_the_pass_and_those_for_this_machine_do_not() -> None:
    assert "part-resizes" in {item.name for item in passes_for("ort-portable")}
    assert "part-resizes" not in {item.name for item in passes_for("ort-cpu")}


@pytest.mark.parametrize(
    ("version", "parts"), [("1.23.2", True), ("1.26.1", True), ("1.27.0", False), ("2.0.0", False)]
)
def test_the_target_adds_the_pass_for_old_runtimes(
    version: str, parts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.u8.onnx"
    artifact: OnnxArtifact = save_artifact(resize_model(), path, "u8", {})
    monkeypatch.setattr(onnxruntime, "__version__", version)
    lowered = get_target("ort-cpu").lower(artifact, tmp_path / "work")
    names = [node.op_type for node in onnx.load(lowered.path).graph.node]
    assert ("LeakyRelu" in names) == parts
